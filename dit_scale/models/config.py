"""What a network is: its sizes, its switches, and what its data ask of it, in one place.

``DiT`` takes these fields as keywords; presets and the keys ``model.*`` of a configuration set them by the same names.
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

from dit_scale.errors import InputError, nearest

FROM_DATA = ("latent_size", "num_classes", "in_channels")
"""Fields that no preset and no configuration sets: latents and their classes do."""
FROM_SECTIONS = ("projectors",)
"""Fields that no preset and no key ``model.*`` sets: other sections of a configuration do."""


@dataclass(frozen=True, kw_only=True)
class Projectors:
    """Side layers that map a block's tokens to the features of frozen encoders."""

    after_block: int
    """The block whose tokens they take, counted from 1."""
    widths: tuple[int, ...]
    """Of the features, one projector each."""
    kind: Literal["mlp", "conv"] = "mlp"
    """Three linear layers, or one 3 x 3 convolution."""
    width: int = 2048
    """Between the three linear layers."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A whole network but for its weights.

    Raises:
        InputError: a switch that is unknown, or sizes that do not fit each other.
    """

    latent_size: int
    """Side of a latent, S."""
    num_classes: int
    """Labels, without the null label."""
    in_channels: int = 4
    """Channels of a latent, C."""
    patch_size: int
    """Side of a patch in latent pixels, P."""
    hidden_size: int
    """Width of a token, D."""
    depth: int
    """Blocks."""
    num_heads: int
    """Attention heads, H."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward layer over that of a token."""
    condition: str = "label"
    """What it is told of an image, by its name in ``dit_scale.conditioning``."""
    label_dropout: float = 0.1
    """Above 0 the condition has a null; the label table, a row for it."""
    learn_sigma: bool = True
    """Twice the output channels."""
    attention: Literal["auto", "xformers", "sdpa", "cudnn", "flash", "matmul"] = "auto"
    """The attention kernel."""
    projectors: Projectors | None = None
    """Of alignment, in training alone."""

    def __post_init__(self) -> None:
        """Check at the door."""
        _check_sizes(self.latent_size, self.patch_size, self.hidden_size, self.num_heads, self.label_dropout)
        if int(self.hidden_size * self.mlp_ratio) < 1:
            raise InputError(
                f"mlp_ratio {self.mlp_ratio:g} of hidden_size {self.hidden_size} is an MLP of width 0; give more"
            )
        if self.projectors is not None and self.projectors.after_block > self.depth:
            raise InputError(
                f"after_block {self.projectors.after_block} is not one of {self.depth} blocks; give 1 to {self.depth}"
            )
        for entry in fields(self):
            if get_origin(entry.type) is Literal:
                check_choice(entry.name, getattr(self, entry.name))


def choices_of(name: str) -> tuple[str, ...]:
    """Return what a switch may be."""
    (kind,) = (entry.type for entry in fields(NetworkConfig) if entry.name == name)
    return get_args(kind)


def check_choice(name: str, value: str) -> None:
    """Raise InputError where a switch cannot be ``value``."""
    if value not in choices_of(name):
        raise InputError(f"{name} {value!r} is unknown{nearest(value, choices_of(name))}")


def _check_sizes(latent_size: int, patch_size: int, hidden_size: int, num_heads: int, label_dropout: float) -> None:
    if min(latent_size, patch_size, hidden_size, num_heads) < 1:
        raise InputError(
            f"latent_size {latent_size}, patch_size {patch_size}, hidden_size {hidden_size} and num_heads {num_heads} "
            "must all be 1 or more; fix the one that is not"
        )
    if latent_size % patch_size:
        raise InputError(
            f"latent_size {latent_size} is not a multiple of patch_size {patch_size}; "
            "choose a patch_size that divides it"
        )
    if hidden_size % num_heads or hidden_size % 4:
        raise InputError(
            f"hidden_size {hidden_size} must be a multiple of num_heads {num_heads} and, for the table of "
            "positions, of 4; change one of the two"
        )
    if not 0 <= label_dropout < 1:
        raise InputError(f"label_dropout {label_dropout} is not in [0, 1); 0.1 is the published value")
