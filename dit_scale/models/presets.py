"""Networks by name: DiT's published sizes (arXiv 2212.09748, table 1), larger ones, and those that came after."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from dit_scale.errors import InputError, nearest
from dit_scale.models.config import NetworkConfig
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

_LIGHTNING = {"norm": "rmsnorm", "mlp": "swiglu", "rope": True, "learn_sigma": False}
_HEAD = {"head_hidden_size": 2048, "head_depth": 2, "head_num_heads": 16}


def _sized(numbers: tuple[int, int, int], patch_size: int) -> dict[str, Any]:
    return dict(zip(SIZES, (*numbers, patch_size), strict=True))


PRESETS: dict[str, dict[str, Any]] = (
    {f"DiT-{size}/{side}": _sized(numbers, side) for size, numbers in _PUBLISHED.items() for side in (2, 4, 8)}
    | {f"DiT-{size}/2": _sized(numbers, 2) for size, numbers in _LARGER.items()}
    # arXiv 2501.01423; its L is published with patches of 2
    | {f"LightningDiT-{size}/1": _sized(_PUBLISHED[size], 1) | _LIGHTNING for size in ("B", "L", "XL")}
    # arXiv 2510.11690: "DiT-DH", of RAE
    | {
        f"DiT-DH-{size}": _sized(_PUBLISHED[size], 1) | _LIGHTNING | _HEAD | {"time_embedding": "fourier"}
        for size in ("S", "XL")
    }
)


def preset_values(name: str) -> dict[str, Any]:
    """Return each field of ``NetworkConfig`` that a preset, or else a default, gives a value."""
    defaults = {entry.name: entry.default for entry in fields(NetworkConfig) if entry.default is not MISSING}
    return defaults | PRESETS.get(name, {})


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
