"""What the shapes of published weights say of the model that they belong to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dit_scale.errors import InputError

_TABLE = "y_embedder.embedding_table.weight"
_NEEDED = (
    "pos_embed",
    "x_embedder.proj.weight",
    "blocks.0.mlp.fc1.weight",
    "final_layer.linear.weight",
)


@dataclass(frozen=True)
class Architecture:
    """All that shapes tell, by the names of ``NetworkConfig``; the number of attention heads they do not."""

    latent_size: int
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    mlp_ratio: float
    condition: str
    """``label``, or ``none`` where nothing embeds one."""
    num_labels: int
    """Rows of the label table: the classes, and the null label where there is one; 0 where there is no table."""
    learn_sigma: bool


def architecture_of(weights: Mapping[str, Tensor], origin: str) -> Architecture:
    """Read an architecture from a state dict under the published names; raises InputError where it is no DiT's."""
    is_conditional = any(name.startswith("y_embedder.") for name in weights)
    for name in (*_NEEDED, *([_TABLE] if is_conditional else [])):
        if name not in weights:
            begin = ", ".join(list(weights)[:3]) or "none"
            raise InputError(
                f"weights '{origin}' hold no {name} and so are not a DiT's (they begin with: {begin}); give a "
                f"published DiT or SiT checkpoint, or one that dit-scale export wrote"
            )
    positions, patches, wide, last = (weights[name] for name in _NEEDED)
    tables = [weights[_TABLE]] if is_conditional else []
    if patches.dim() != 4 or positions.dim() != 3 or min(matrix.dim() for matrix in (wide, last, *tables)) < 2:
        raise InputError(f"weights '{origin}' are not a DiT's: x_embedder.proj.weight is {tuple(patches.shape)}")
    hidden_size, in_channels, patch_size = patches.shape[:3]
    grid_side = math.isqrt(positions.shape[1])
    out_channels = last.shape[0] // patch_size**2
    return Architecture(
        latent_size=grid_side * patch_size,
        patch_size=patch_size,
        in_channels=in_channels,
        hidden_size=hidden_size,
        depth=1 + max(_block(name, origin) for name in weights if name.startswith("blocks.")),
        mlp_ratio=_ratio(wide.shape[0], hidden_size),
        condition="label" if is_conditional else "none",
        num_labels=sum(table.shape[0] for table in tables),
        learn_sigma=out_channels == 2 * in_channels,
    )


def _block(name: str, origin: str) -> int:
    number = name.split(".")[1]
    if not number.isdecimal():
        raise InputError(
            f"weights '{origin}' hold {name}, but a DiT's blocks have numbers; give a published DiT's weights"
        )
    return int(number)


def _ratio(wide: int, hidden_size: int) -> float:
    """Return a ratio of which the model, which rounds down, makes exactly this width."""
    ratio = wide / hidden_size
    return ratio if int(hidden_size * ratio) == wide else (wide + 0.5) / hidden_size
