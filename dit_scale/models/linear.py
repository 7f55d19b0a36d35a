"""Linear layers, and the faster matrix products that some machines have for them; the only import of torchao."""

from typing import Any

import torch
from torch import Tensor, nn

from dit_scale.errors import InputError
from dit_scale.models.operators import Fused, operator


class Linear(Fused, nn.Linear):
    """A linear layer whose compiled fp32 products on a CPU are oneDNN's: 1.15 times as fast as PyTorch's own there."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [..., D_in] to [..., D_out]."""
        is_fp32_on_cpu = tokens.device.type == "cpu" and tokens.dtype == torch.float32
        if torch.compiler.is_compiling() and is_fp32_on_cpu and self.has_kernels:
            return _product(tokens, self.weight, self.bias)
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
        if not isinstance(module, Linear):
            return False  # adaLN's, of one vector an image, are too small to gain
        # A GPU's products in 8 bits take multiples of 16, which SwiGLU's width need not be.
        return not has_fp8 or module.in_features % 16 == 0 == module.out_features % 16

    # And so is the number of tokens, over which weights' gradients are summed: of routed ones it is any.
    config = Float8LinearConfig(emulate=not has_fp8, pad_inner_dim=has_fp8)
    convert_to_float8_training(blocks, config=config, module_filter_fn=is_wide)


@operator("dit_scale::linear")
def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """An operator of our own around PyTorch's, which its compiler takes for constant weights alone."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight.contiguous(), bias, "none", [], "")
    return product


@_product.register_fake
def _(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return tokens.new_empty(*tokens.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    tokens, weight, _ = inputs
    ctx.save_for_backward(tokens, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tokens, weight = ctx.saved_tensors
    rows = gradient.flatten(0, -2)
    return _product(gradient, weight.t(), None), rows.t() @ tokens.flatten(0, -2), rows.sum(0)


_product.register_autograd(_gradients, setup_context=_keep)
