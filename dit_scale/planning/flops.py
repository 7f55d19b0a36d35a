"""How much arithmetic a model costs, and how much a GPU can do: what utilisation (MFU) is made of."""

import torch

from dit_scale.models.dit import DiT

_PEAK_BF16_FLOPS = {  # dense, from the makers' datasheets
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
}


def attention_multiply_adds(model: DiT) -> int:
    """Return the multiply-adds of one image's forward pass between queries and keys, and weights and values."""
    return 2 * model.depth * model.grid_side**4 * model.hidden_size


def forward_multiply_adds(model: DiT) -> int:
    """Return the multiply-adds of one image's forward pass: what the DiT paper's table 1 calls Gflops."""
    width, tokens = model.hidden_size, model.grid_side**2
    linear = tokens * width * width * (3 + 1 + 2 * model.mlp_ratio)  # qkv, proj, the MLP's two
    modulation = 6 * width * width
    patch = model.patch_size**2
    embedding = tokens * width * patch * model.in_channels + 256 * width + width * width
    final = tokens * width * patch * model.out_channels + 2 * width * width
    return int(model.depth * (linear + modulation) + embedding + final) + attention_multiply_adds(model)


def training_flops_per_image(model: DiT) -> int:
    """Return the floating-point operations of forward and backward: two a multiply-add, backward twice forward."""
    return 6 * forward_multiply_adds(model)


def peak_flops(device: str, precision: str) -> float | None:
    """Return the dense bf16 peak of a known GPU in FLOP/s; None for others, CPUs and fp32."""
    if not device.startswith("cuda") or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_BF16_FLOPS.items() if key in name), None)
