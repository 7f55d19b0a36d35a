"""The twelve published sizes of DiT (arXiv 2212.09748, table 1), larger ones, and models built from them by name."""

from collections.abc import Mapping
from typing import Any

from dit_scale.errors import InputError, nearest
from dit_scale.models.dit import DiT

SIZES = ("depth", "hidden_size", "num_heads", "patch_size")
"""What every preset sets; it may set any other field of ``NetworkConfig``, too."""

_PUBLISHED = {  # depth, hidden_size, num_heads
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
_LARGER = {  # ours, named by their parameters; heads of 64 or 128, which attention kernels do not pad
    "1.5B": (36, 1536, 24),
    "3B": (40, 2048, 32),
    "7B": (42, 3072, 24),
}

PRESETS: dict[str, dict[str, Any]] = {
    f"DiT-{size}/{patch_size}": dict(zip(SIZES, (*numbers, patch_size), strict=True))
    for size, numbers in _PUBLISHED.items()
    for patch_size in (2, 4, 8)
} | {f"DiT-{size}/2": dict(zip(SIZES, (*numbers, 2), strict=True)) for size, numbers in _LARGER.items()}


def build_model(name: str | None, *, latent_size: int, num_classes: int, **settings: Any) -> DiT:
    """Build the preset ``name``, with any field of ``NetworkConfig`` overridden; None leaves it as it is.

    ``"custom"`` (or None) names no preset, and then all four sizes are needed.

    Raises:
        InputError: an unknown name or condition, a custom model with a size missing, or sizes that do not divide.
    """
    given = {field: value for field, value in settings.items() if value is not None}
    return DiT(latent_size=latent_size, num_classes=num_classes, **_preset(name, given) | given)


def _preset(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    if name is None or name == "custom":
        missing = [field for field in SIZES if field not in given]
        if missing:
            raise InputError(f"a custom model has no {', '.join(missing)}; give all four or name a preset")
        return {}
    if name not in PRESETS:
        raise InputError(f"model {name!r} is not a preset{nearest(name, [*PRESETS, 'custom'])}")
    return PRESETS[name]
