"""The twelve published sizes of DiT (arXiv 2212.09748, table 1), larger ones, and models built from them by name."""

import dataclasses
from dataclasses import dataclass

from dit_scale.conditioning import build_condition
from dit_scale.errors import InputError, nearest
from dit_scale.models.dit import DiT


@dataclass(frozen=True)
class Preset:
    """The four numbers that make a size."""

    depth: int
    hidden_size: int
    num_heads: int
    patch_size: int


_SIZES = {  # depth, hidden_size, num_heads
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
_LARGER_SIZES = {  # ours, named by their parameters; heads of 64 or 128, which attention kernels do not pad
    "1.5B": (36, 1536, 24),
    "3B": (40, 2048, 32),
    "7B": (42, 3072, 24),
}

PRESETS: dict[str, Preset] = {
    f"DiT-{size}/{patch_size}": Preset(*numbers, patch_size)
    for size, numbers in _SIZES.items()
    for patch_size in (2, 4, 8)
} | {f"DiT-{size}/2": Preset(*numbers, 2) for size, numbers in _LARGER_SIZES.items()}


def build_model(
    name: str | None,
    *,
    latent_size: int,
    num_classes: int,
    in_channels: int = 4,
    mlp_ratio: float = 4.0,
    label_dropout: float = 0.1,
    learn_sigma: bool = True,
    attention: str = "auto",
    patch_size: int | None = None,
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    condition: str = "label",
) -> DiT:
    """Build the preset ``name``, with any of its four numbers overridden.

    ``"custom"`` (or None) names no preset, and then all four numbers are needed.

    Raises:
        InputError: an unknown name or condition, a custom model with a number missing, or sizes that do not divide.
    """
    overrides = {"depth": depth, "hidden_size": hidden_size, "num_heads": num_heads, "patch_size": patch_size}
    return DiT(
        **dataclasses.asdict(_resolve(name, overrides)),
        latent_size=latent_size,
        num_classes=num_classes,
        in_channels=in_channels,
        mlp_ratio=mlp_ratio,
        label_dropout=label_dropout,
        learn_sigma=learn_sigma,
        attention=attention,
        condition=build_condition(condition, num_classes, has_null=label_dropout > 0),
    )


def _resolve(name: str | None, overrides: dict[str, int | None]) -> Preset:
    given = {field: value for field, value in overrides.items() if value is not None}
    if name is None or name == "custom":
        missing = [field for field in overrides if field not in given]
        if missing:
            raise InputError(f"a custom model has no {', '.join(missing)}; give all four or name a preset")
        return Preset(**given)
    if name not in PRESETS:
        raise InputError(f"model {name!r} is not a preset{nearest(name, [*PRESETS, 'custom'])}")
    return dataclasses.replace(PRESETS[name], **given)
