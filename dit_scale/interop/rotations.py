"""The tables of rotations that published files hold; here they are computed, and no checkpoint has them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dit_scale.errors import InputError
from dit_scale.models import DiT
from dit_scale.models.embeddings import grid_rotation
from dit_scale.weights import ROTATIONS, check_names_and_shapes

_ATOL = 1e-2
"""As far as bf16 rounds a cosine."""


def rotations_of(model: DiT) -> dict[str, Tensor]:
    """Return a network's tables under the published names, cosines and sines [T, d]; none where it does not rotate."""
    if not model.config.rope:
        return {}
    names = ("enc_feat_rope", "dec_feat_rope") if model.has_head else ("feat_rope",)
    tables: dict[str, Tensor] = {}
    for name, stack in zip(names, model.config.stacks, strict=True):
        cosines, sines = grid_rotation(stack.head_size, model.grid_side, torch.device("cpu"))
        tables |= {f"{name}.freqs_cos": cosines, f"{name}.freqs_sin": sines}
    return tables


def check_rotations(weights: Mapping[str, Tensor], model: DiT, origin: str, fix: str) -> None:
    """Raise InputError where weights hold other rotations than the network has; they may hold none."""
    found = {name: value for name, value in weights.items() if name.startswith(ROTATIONS)}
    expected = rotations_of(model)
    if not found:
        return
    check_names_and_shapes(found, expected, origin, fix)
    for name, value in found.items():
        if not torch.allclose(value, expected[name], rtol=0.0, atol=_ATOL):
            raise InputError(f"weights '{origin}' have a {name} that is not LightningDiT's table of rotations; {fix}")
