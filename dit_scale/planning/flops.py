"""How much arithmetic a model costs, and how much a GPU can do: what utilisation (MFU) is made of."""

import torch

from dit_scale.models.dit import DiT
from dit_scale.planning.measuring import products_of, with_all_tokens

_PEAK_BF16_FLOPS = {  # dense, from the makers' datasheets
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
}


def forward_multiply_adds(model: DiT) -> int:
    """Return the multiply-adds of one image's forward pass: what the DiT paper's table 1 calls Gflops."""
    return products_of(with_all_tokens(model.config)).forward // 2


def training_flops_per_image(model: DiT, all_tokens: bool = False) -> int:
    """Return the floating-point operations of forward and backward: two a multiply-add.

    ``all_tokens``: of a step that routes none around blocks.
    """
    return products_of(with_all_tokens(model.config) if all_tokens else model.config).training


def attention_flops_per_image(model: DiT, all_tokens: bool = False) -> int:
    """Return those between queries and keys, and weights and values."""
    return products_of(with_all_tokens(model.config) if all_tokens else model.config).attention


def peak_flops(device: str, precision: str) -> float | None:
    """Return the dense bf16 peak of a known GPU in FLOP/s; None for others, CPUs and fp32."""
    if not device.startswith("cuda") or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_BF16_FLOPS.items() if key in name), None)
