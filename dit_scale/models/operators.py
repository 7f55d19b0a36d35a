"""Operators of our own: how they are registered, what they refuse, and the modules that compute with them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.autograd import make_autograd_impl
from torch.autograd import forward_ad
from torch.library import CustomOpDef, Library, custom_op

from dit_scale.errors import InputError

_NAMESPACE = "dit_scale"
_REFUSALS = Library(_NAMESPACE, "IMPL")


class Fused(nn.Module):
    """A module that computes with our own operators where they run, or with PyTorch's alone."""

    has_kernels = True


def operator(name: str, define: Any = custom_op) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Register a function as the operator ``name``, which changes no argument and refuses forward-mode differentiation.

    ``define`` is torch.library's ``custom_op`` or ``triton_op``. Neither takes a forward-mode rule, and both would drop
    a tangent, a derivative of zero, without a word.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        defined: CustomOpDef = define(name, mutates_args=())(function)
        short = name.removeprefix(f"{_NAMESPACE}::")
        without_tangents = make_autograd_impl(getattr(torch.ops.dit_scale, short).default, defined)

        def autograd(keyset: Any, *arguments: Any, **keywords: Any) -> Any:
            if any(map(_has_tangent, arguments)):
                raise InputError(
                    f"operator {name} has no rule for forward-mode differentiation (torch.func.jvp); "
                    f"give engine.kernels=off, or call turn_off_kernels() of the model"
                )
            return without_tangents(keyset, *arguments, **keywords)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
            _REFUSALS.impl(short, autograd, "Autograd", with_keyset=True, allow_override=True)
        return defined

    return register


def _has_tangent(argument: Any) -> bool:
    return isinstance(argument, Tensor) and forward_ad.unpack_dual(argument).tangent is not None
