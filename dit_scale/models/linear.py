"""Linear layers, and the faster matrix products that some machines have for them; the only import of torchao."""

from typing import Any

import torch
from torch import Tensor, nn

from dit_scale.errors import InputError


class Linear(nn.Linear):
    """A linear layer whose compiled fp32 products on a CPU are oneDNN's: 1.15 times as fast as PyTorch's own there."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [..., D_in] to [..., D_out]."""
        if torch.compiler.is_compiling() and tokens.device.type == "cpu" and tokens.dtype == torch.float32:
            return _OneDNNLinear.apply(tokens, self.weight, self.bias)
        return super().forward(tokens)


def use_fp8(blocks: nn.Module, device: torch.device | str) -> None:
    """Have the linear layers of blocks multiply in 8 bits, forward and backward, scaled by tensor (arXiv 2209.05433).

    Weights stay as they are, and so do their names. Where a device has no such products they are emulated, which is
    slow and for tests. Raises InputError where torchao is missing.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise InputError(f"engine.fp8 needs torchao ({error}); pip install torchao, or set engine.fp8=false") from error
    has_fp8 = torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)

    def is_wide(module: nn.Module, name: str) -> bool:
        return isinstance(module, Linear)  # adaLN's, of one vector an image, are too small to gain

    convert_to_float8_training(blocks, config=Float8LinearConfig(emulate=not has_fp8), module_filter_fn=is_wide)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(tokens, weight)
        return _product(tokens, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        tokens, weight = context.saved_tensors
        rows = gradient.flatten(0, -2)
        return _product(gradient, weight.t(), None), rows.t() @ tokens.flatten(0, -2), rows.sum(0)


@torch.library.custom_op("dit_scale::linear", mutates_args=())
def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """An operator of our own around PyTorch's, which its compiler takes for constant weights alone."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight.contiguous(), bias, "none", [], "")
    return product


@_product.register_fake
def _(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return tokens.new_empty(*tokens.shape[:-1], weight.shape[0])
