"""What each operator of ours says to a tangent: `TRITON_INTERPRET=1 python -m tests.models.forward_mode`.

Every operator under `dit_scale::` is found by its registration, and its arguments are made by their names here. Prints
one JSON object: by operator and way, the error or `nothing`.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import dit_scale.models.kernels
import dit_scale.models.linear  # noqa: F401 (their operators)

N, T, D = 2, 4, 8
SHAPES = {  # of arguments by their names
    **dict.fromkeys(("tokens", "branch", "d_summed", "d_modulated", "product", "gradient"), (N, T, D)),
    **dict.fromkeys(("gate", "shift", "scale"), (N, D)),
    **dict.fromkeys(("means", "deviations"), (N, T)),
    "weight": (D, D),
    "bias": (D,),
}


def operators() -> list[str]:
    """Return the names of all operators of ours that are registered."""
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("dit_scale::"))


def arguments_of(operator: Any) -> list[Any]:
    """Return what an operator can be called with."""
    names = [argument.name for argument in operator._schema.arguments]
    return [1e-6 if name == "eps" else torch.rand(SHAPES[name]) + 0.1 for name in names]


def answer(call: Callable[[], object]) -> str:
    """Return what a call raised."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def with_level(operator: Any, arguments: list[Any], place: int, needs_gradient: bool) -> object:
    """Call an operator with a tangent of one argument, and others that backward asks for."""
    with forward_ad.dual_level():
        others = [value.requires_grad_(needs_gradient) if isinstance(value, Tensor) else value for value in arguments]
        others[place] = forward_ad.make_dual(arguments[place], torch.ones_like(arguments[place]))
        return operator(*others)


def ways(name: str) -> dict[str, str]:
    """Return what an operator says to a tangent of its first and its last tensor, however it comes."""
    operator = getattr(torch.ops.dit_scale, name.partition("::")[2]).default
    arguments = arguments_of(operator)
    last = max(place for place, value in enumerate(arguments) if isinstance(value, Tensor))

    def of_last(value: Tensor) -> Any:
        return operator(*arguments[:last], value, *arguments[last + 1 :])

    tangents = (torch.ones_like(arguments[last]),)
    return {
        "without a tangent": answer(lambda: operator(*arguments)),
        "jvp": answer(lambda: torch.func.jvp(of_last, (arguments[last],), tangents)),
        "jvp of a gradient": answer(
            lambda: torch.func.jvp(
                torch.func.grad(lambda value: torch.as_tensor(of_last(value)[0]).sum()), (arguments[last],), tangents
            )
        ),
        "dual level": answer(lambda: with_level(operator, arguments_of(operator), 0, needs_gradient=False)),
        "dual level and gradients": answer(
            lambda: with_level(operator, arguments_of(operator), 0, needs_gradient=True)
        ),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({name: ways(name) for name in operators()}))
