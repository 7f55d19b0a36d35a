"""Optimizers built from groups: held to a verdict, whether they know of one or not, or refused at the start."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from dit_scale.config import EngineConfig, TrainSection
from dit_scale.errors import InputError
from dit_scale.optim import OPTIMIZERS, Algorithm, Group, block_matrices, build_optimizer, everything, groups_of
from dit_scale.optim.muon import MUON
from dit_scale.zero.engine import check_engine

CPU = torch.device("cpu")
ADAM = ("exp_avg", "exp_avg_sq")
MAKERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "fused AdamW": (partial(torch.optim.AdamW, fused=True), ADAM),
    "AdamW": (torch.optim.AdamW, ADAM),
    "NAdam": (torch.optim.NAdam, (*ADAM, "mu_product")),
    "Adagrad": (torch.optim.Adagrad, ("sum",)),
    "RMSprop": (partial(torch.optim.RMSprop, momentum=0.9), ("square_avg", "momentum_buffer")),
}


def parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"blocks.0.attn.qkv.weight": (6, 4), "blocks.0.attn.qkv.bias": (6,), "embedder.weight": (4, 4)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def everyone(build: Any, kinds: Sequence[str]) -> list[Group]:
    return [Group(everything, Algorithm("This one", build, tuple(kinds)), weight_decay=0.1)]


def step(optimizer: Any, owned: dict[str, Tensor], number: int, passes: bool = True, scale: float = 1.0) -> None:
    """Update by a gradient that depends on the number alone; not a number where it does not pass."""
    generator = torch.Generator().manual_seed(number)
    for parameter in owned.values():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient * scale if passes else torch.full_like(gradient, torch.nan)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(float(not passes)), torch.tensor(scale)
    optimizer.step()


def everything_in(optimizer: Any, owned: dict[str, Tensor]) -> list[Tensor]:
    states = [value for key in owned.values() for _, value in sorted(optimizer.state[key].items())]
    return [tensor.detach().clone() for tensor in (*owned.values(), *states)]


def all_groups() -> dict[str, Sequence[Group]]:
    train = TrainSection(weight_decay=0.1)
    known = {name: groups(train) for name, groups in OPTIMIZERS.items()}
    return known | {name: everyone(*MAKERS[name]) for name in ("fused AdamW", "AdamW", "Adagrad", "RMSprop")}


@pytest.mark.parametrize("name", all_groups())
@pytest.mark.parametrize("bad", [0, 2])
def test_a_discarded_update_leaves_no_trace_and_gradients_are_divided(name: str, bad: int) -> None:
    """Also where it is the first one, before which there is no state."""
    seen, clean = parameters(), parameters()
    groups = all_groups()[name]
    guarded, plain = (build_optimizer(groups, owned, 0.1, CPU) for owned in (seen, clean))
    for number in range(4):
        if number == bad:
            before = everything_in(guarded, seen) if number else list(parameters().values())
            step(guarded, seen, number, passes=False)
            for now, then in zip(everything_in(guarded, seen), before, strict=number > 0):
                assert torch.equal(now, then)
        step(guarded, seen, number, scale=4.0)  # a power of two, by which dividing is exact
        step(plain, clean, number)
        for one, other in zip(everything_in(guarded, seen), everything_in(plain, clean), strict=True):
            assert torch.equal(one, other)


def test_adamw_alone_is_pytorchs_own_and_nothing_around_it() -> None:
    owned = parameters()
    optimizer = build_optimizer(groups_of(TrainSection(weight_decay=0.1)), owned, 0.1, CPU)
    assert type(optimizer) is torch.optim.AdamW
    assert [list(group["names"]) for group in optimizer.param_groups] == [list(owned)]


def test_each_parameter_belongs_to_the_first_group_that_takes_it() -> None:
    groups = groups_of(TrainSection(optimizer="muon", weight_decay=0.1))
    found = build_optimizer([replace(groups[0], rate_scale=2.0), groups[1]], parameters(), 0.1, CPU).param_groups
    assert [group["names"] for group in found] == [
        ("blocks.0.attn.qkv.weight",),
        ("blocks.0.attn.qkv.bias", "embedder.weight"),
    ]
    assert [group["lr"] for group in found] == [0.2, 0.1]
    assert [group["state_kinds"] for group in found] == [("momentum_buffer",), ADAM]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (everyone(torch.optim.AdamW, ["exp_avg"]), r"keeps \['exp_avg', 'exp_avg_sq'\] of a parameter, and its descr"),
        (everyone(*MAKERS["NAdam"]), "keeps 'mu_product' in another shape than the parameter's; checkpoints"),
        (
            everyone(partial(torch.optim.Adagrad, initial_accumulator_value=0.1), ["sum"]),
            "what This one keeps does not begin with zeros, as what a run keeps does; choose",
        ),
        (everyone(torch.optim.SGD, []), r"keep no count of updates \('step'\), by which runs resume"),
        ([Group(everything, replace(MUON, state_kinds=("velocity",)))], r"keeps \['momentum_buffer'\] of a parameter"),
    ],
)
def test_what_cannot_be_held_is_refused_before_the_first_step(groups: list[Group], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build_optimizer(groups, {"blocks.0.weight": nn.Parameter(torch.ones(2, 2))}, 0.1, CPU)


class CountsOnTheHost(torch.optim.SGD):
    """Keeps what no device can put back."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1


def test_a_count_on_the_host_is_refused_before_the_first_step() -> None:
    with pytest.raises(InputError, match=r"keeps 'step' as int, where it cannot be put back without a wait; build it"):
        build_optimizer(everyone(CountsOnTheHost, []), parameters(), 0.1, CPU)


def test_an_optimizer_that_needs_matrices_is_refused_where_nothing_puts_them_together() -> None:
    muon = TrainSection(optimizer="muon")
    for right in (EngineConfig(zero_stage=0, precision="fp32"), EngineConfig(zero_stage=1), EngineConfig(zero_stage=2)):
        check_engine(right, muon)
    with pytest.raises(InputError, match=r"needs whole matrices, but engine\.zero_stage=3 cuts each of them over"):
        check_engine(EngineConfig(zero_stage=3), muon)
    with pytest.raises(InputError, match=r"too slow in host memory; give engine\.offload_optimizer=false, or train"):
        check_engine(EngineConfig(zero_stage=2, offload_optimizer=True), muon)


def test_muon_has_a_rate_of_its_own_in_proportion_to_the_schedule() -> None:
    assert [group.rate_scale for group in groups_of(TrainSection(optimizer="muon"))] == [1.0, 1.0]
    own = TrainSection(optimizer="muon", learning_rate=1e-4, muon_learning_rate=2e-3)
    assert [group.rate_scale for group in groups_of(own)] == pytest.approx([20.0, 1.0])


def test_every_choice_of_the_setting_is_known() -> None:
    assert set(get_args(get_type_hints(TrainSection)["optimizer"])) == set(OPTIMIZERS)
    assert block_matrices("blocks.3.mlp.fc1.weight", torch.Size([4, 4]))
    assert not block_matrices("x_embedder.proj.weight", torch.Size([4, 4]))
