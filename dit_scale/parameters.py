"""A model's parameters: how many, which of them are trained, and in which numbers it computes."""

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By the name that settings give it."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def drawn(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers, by name: numbers that were drawn once and are never trained, but belong to the weights."""
    kept = model.state_dict().keys()  # without tables that are computed
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def num_trained(model: nn.Module) -> int:
    """Return how many numbers training changes."""
    return sum(parameter.numel() for parameter in trained(model).values())


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers a model has, those that are never trained among them."""
    return sum(parameter.numel() for parameter in model.parameters())
