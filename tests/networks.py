"""What tests do to a network: have every weight count, and see what autograd keeps of it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dit_scale.diffusion import guided, with_null
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.models import DiT


def fill(network: nn.Module, std: float) -> None:
    """Draw every trained weight anew (adaLN-Zero starts with many at zero, which hides mistakes)."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=std)


def kept_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes of all tensors that ``forward`` keeps for backward, the weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad  # and so keeps all that was noted
    return sum(storages.values())


def guided_by_null(model: DiT, label: Tensor, cfg_scale: float) -> LabelledDenoiser:
    """Return a model under labels [N], with classifier-free guidance on three channels."""
    nulls = model.condition.nulls(label)
    assert nulls is not None
    return guided(lambda noised, time: model(noised, time, label), with_null(model, label, nulls), cfg_scale)
