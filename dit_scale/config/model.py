"""Every setting of the network and of what it learns, with its default, its range and a sentence about it."""

from dataclasses import dataclass
from typing import Literal

from dit_scale.config.fields import Spell, choice, number, setting, unless, when
from dit_scale.errors import InputError

_GAUSSIAN, _FLOW, _LOGIT_NORMAL = (
    when("name", "gaussian"),
    when("name", "flow"),
    when("time_distribution", "logit_normal"),
)


@dataclass(frozen=True)
class ModelConfig:
    """By the same names as `NetworkConfig` in models/config.py, which says more; null is the preset's."""

    name: str = "DiT-XL/2"
    """A preset, DiT-{S,B,L,XL}/{2,4,8}, DiT-{1.5B,3B,7B}/2, LightningDiT-{B,L,XL}/1 or DiT-DH-{S,XL}, or `custom`."""
    patch_size: int | None = number(None, at_least=1)
    """Side of a patch in latent pixels; null takes the preset's. `custom` needs this and the next three."""
    hidden_size: int | None = number(None, at_least=1)
    """Width of a token; null takes the preset's."""
    depth: int | None = number(None, at_least=1)
    """Transformer blocks; null takes the preset's."""
    num_heads: int | None = number(None, at_least=1)
    """Attention heads; null takes the preset's."""
    mlp_ratio: float = number(4.0, above=0)
    """Width of the MLP over the width of a token."""
    norm: Literal["layernorm", "rmsnorm"] | None = None
    """Norm of the blocks: `layernorm` without parameters, or `rmsnorm` with a weight; null takes the preset's."""
    mlp: Literal["gelu", "swiglu"] | None = None
    """Feed-forward layer of the blocks; null takes the preset's."""
    rope: bool | None = None
    """Rotate queries and keys by the token's row and column; null takes the preset's."""
    qk_norm: bool | None = None
    """Normalise queries and keys; null takes the preset's."""
    adaln_shift: bool | None = None
    """Shift what blocks normalise, and not only scale it; null takes the preset's."""
    time_embedding: Literal["sinusoidal", "fourier"] | None = None
    """Embedding of the timestep: `sinusoidal`, or `fourier` with random frequencies; null takes the preset's."""
    head_hidden_size: int | None = number(None, at_least=1)
    """Width of a DDT head, which goes with the next two; null takes the preset's, most of which have no head."""
    head_depth: int | None = number(None, at_least=1)
    """Blocks of the head; null takes the preset's."""
    head_num_heads: int | None = number(None, at_least=1)
    """Attention heads of the head; null takes the preset's."""
    condition: str = "label"
    """What the network is told of an image: its class `label`, or `none`."""
    label_dropout: float = number(0.1, at_least=0, below=1, only_if=unless("condition", "none"))
    """Probability with which a label, or another condition, is replaced by the null label in training."""
    learn_sigma: bool | None = None
    """Predict the variance, too: twice the output channels; null takes the preset's."""
    early_block: int = number(0, at_least=0)
    """Block after which a second final layer predicts, too, for guide_by=early (diffusion.early_weight); 0 is none."""
    attention: Literal["auto", "xformers", "sdpa", "cudnn", "flash", "matmul"] = choice(
        "auto", retired={"cudnn-padded": "cudnn", "flash-padded": "flash"}
    )
    """Attention kernel: the fastest that is found (RUN/attention.json), or one by name."""


OF_TRAINING = (
    *("min_snr_gamma", "time_distribution", "logit_mean", "logit_std", "early_weight", "time_interval", "time_shift"),
    *("time_shift_base", "cosine_weight", "contrastive_weight"),
)
"""Fields of ``DiffusionConfig`` that say how a network learns, and nothing of what its outputs mean."""


@dataclass(frozen=True)
class DiffusionConfig:
    name: Literal["gaussian", "flow"] = "gaussian"
    """Objective: Gaussian diffusion (DDPM) or flow matching (rectified flow, SiT)."""
    num_timesteps: int = number(1000, at_least=1, only_if=_GAUSSIAN)
    """Steps of the discrete schedule."""
    schedule: Literal["linear", "cosine"] = setting("linear", only_if=_GAUSSIAN)
    """Noise schedule."""
    prediction: Literal["epsilon", "v", "x0"] = setting("epsilon", only_if=when("name", "gaussian", spared=("x0",)))
    """What the network predicts; a flow predicts velocity, or with x0 the latent (JiT), its loss on the velocity."""
    min_snr_gamma: float = number(0.0, at_least=0, only_if=_GAUSSIAN)
    """Clip each timestep's weight at this signal-to-noise ratio (arXiv 2303.09556; published: 5); 0 disables."""
    time_at_data: Literal[1, 0] = setting(1, only_if=_FLOW)
    """What the network is told at the latent: 1 (SiT, LightningDiT), or 0, and its velocity turned (REPA, RAE)."""
    time_distribution: Literal["uniform", "logit_normal"] = setting("uniform", only_if=_FLOW)
    """How training times are drawn."""
    logit_mean: float = number(0.0, only_if=_LOGIT_NORMAL)
    """Mean of the logit of t."""
    logit_std: float = number(1.0, above=0, only_if=_LOGIT_NORMAL)
    """Standard deviation of the logit of t."""
    early_weight: float = number(0.5, above=0)
    """Weight of the squared error of the second final layer's prediction (model.early_block)."""
    time_interval: tuple[float, float] = number((0.0, 1.0), at_least=0, at_most=1, only_if=_FLOW)
    """Truncate the distribution of times to this interval, before the shift; 0 is the latent and 1 noise."""
    time_shift: float | None = number(1.0, above=0, only_if=_FLOW)
    """Shift of times, and of solvers' steps, above 1 towards noise; null takes sqrt(C*H*W / time_shift_base)."""
    time_shift_base: float = number(4096.0, above=0, only_if=when("time_shift", None))
    """Numbers in a latent that needs no shift (RAE: 4096)."""
    cosine_weight: float = number(0.0, at_least=0, only_if=_FLOW)
    """Weight of 1 - cosine of the predicted and the true velocity (LightningDiT: 1); 0 disables."""
    contrastive_weight: float = number(0.0, at_least=0, below=1, only_if=_FLOW)
    """Weight of the distance to another image's velocity (arXiv 2506.05350; published: 0.05); 0 disables."""

    @property
    def images_together(self) -> int:
        """How many neighbouring images of the stream are compared, and so stay in one micro batch."""
        return 2 if self.contrastive_weight else 1

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where settings do not fit each other."""
        low, high = self.time_interval
        if not low < high:
            raise InputError(
                f"{spell('time_interval')}=[{low:g}, {high:g}] does not rise from 0 (latent) to 1 (noise); [0, 1] "
                f"truncates nothing"
            )
