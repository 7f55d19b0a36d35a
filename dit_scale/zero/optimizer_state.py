"""Which elements of which parameter this rank holds in fp32, and of its optimizer's state, at every ZeRO stage."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.distributed.fragments import Fragment, share
from dit_scale.optim import begin_state
from dit_scale.parameters import drawn, trained

MASTER = "master"


class OptimizerState:
    """The fp32 master weights and optimizer state of an engine, as fragments of named parameters.

    ``owned`` are the fragments that only this rank writes: over all ranks they cover every trainable
    parameter exactly once. ``held`` are those it needs to go on: the same, but all of them at stage 0.
    """

    def __init__(self, engine: Any):
        self._engine = engine
        self._stage: int = engine.zero_optimization_stage()
        self._base: Any = getattr(engine.optimizer, "optimizer", engine.optimizer)
        groups = self._base.param_groups
        self._trainable: dict[str, Any] = dict(trained(engine.module))
        self.shapes = {name: _full_shape(parameter) for name, parameter in self._trainable.items()}
        self.drawn = drawn(engine.module)
        """What belongs to the weights but is never trained, and so is in no fragment; whole on every rank."""
        group_of = {name: group for group in groups for name in group["names"]}
        self.names = {MASTER: set(self.shapes)}
        """By kind (``master``, then those of the optimizer) the parameters that have it."""
        for name, group in group_of.items():
            for kind in group["state_kinds"]:
                self.names.setdefault(kind, set()).add(name)
        if self._stage == 0:
            self._keys = list(self._trainable.values())
            self._groups = [group_of[name] for name in self._trainable]  # of each key
            self.held = [
                Fragment(name, 0, parameter.numel(), index, 0)
                for index, (name, parameter) in enumerate(self._trainable.items())
            ]
            self.owned = share(self.held, dist.get_rank(), dist.get_world_size())
        elif self._stage in (1, 2):
            self._keys, self._groups = engine.optimizer.single_partition_of_fp32_groups, groups
            self.held = self.owned = list(fragments_of_stages_1_and_2(self._trainable))
        else:
            self._keys = engine.optimizer.fp32_partitioned_groups_flat
            self._groups = [groups[engine.optimizer.sub_group_to_group_id[flat]] for flat in range(len(self._keys))]
            self.held = self.owned = list(self._fragments_of_stage_3())

    @property
    def master(self) -> list[Tensor]:
        """The flat fp32 master weights; training updates them in place."""
        return [key.detach().view(-1) for key in self._keys]

    @property
    def owned_masters(self) -> list[Tensor]:
        """The master weights that only this rank writes, in as few tensors as they lie in."""
        return self.master if self._stage else [fragment.of(self.master) for fragment in self.owned]

    def owned_in(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the owned fragments' views in tensors that are laid out as ``owned_masters``."""
        return [fragment.of(tensors) for fragment in self.owned] if self._stage else tensors

    def of_kind(self, kind: str, fragments: Sequence[Fragment]) -> Iterator[tuple[Fragment, Tensor]]:
        """Yield those of the fragments whose parameters have a kind, each with its view, [numel]."""
        for fragment in fragments:
            if fragment.name in self.names[kind]:
                key = self._keys[fragment.flat]
                flat = key.detach() if kind == MASTER else self._state_of(fragment.flat)[kind]
                yield fragment, flat.view(-1).narrow(0, fragment.start, fragment.numel)

    @property
    def adam_step(self) -> int:
        """The number of updates that the optimizer has counted."""
        return int(self._counts()[0])

    @adam_step.setter
    def adam_step(self, value: int) -> None:
        for count in self._counts():
            count.fill_(value)

    def publish(self) -> None:
        """Copy the master weights into the parameters that the model computes with, on every rank."""
        optimizer = self._engine.optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            optimizer._partition_all_parameters()
            optimizer.invalidate_secondary_tensor()  # a node's copies, where it keeps any
            for group in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def _state_of(self, flat: int) -> dict[str, Tensor]:
        key = self._keys[flat]
        state: dict[str, Tensor] = self._base.state[key]
        begin_state(state, key, self._groups[flat])
        return state

    def _counts(self) -> list[Tensor]:
        states = map(self._state_of, range(len(self._keys)))
        return [state["step"] for state in states if "step" in state]

    def _fragments_of_stage_3(self) -> Any:
        optimizer = self._engine.optimizer
        rank = dist.get_rank()
        for name, parameter in self._trainable.items():
            flat, start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset = rank * padded
            numel = min(padded, parameter.ds_numel - offset)
            if numel > 0:
                yield Fragment(name, offset, numel, flat, start)


def fragments_of_stages_1_and_2(parameters: Mapping[str, Any]) -> Iterator[Fragment]:
    """Yield what this rank holds of named parameters, in the flat part of each parameter group."""
    for name, parameter in parameters.items():
        mapping = parameter._hp_mapping  # None where the rank holds nothing of it
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Fragment(name, here.start, here.numel, mapping.param_group_index, there.start)


def _full_shape(parameter: Any) -> torch.Size:
    return torch.Size(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.shape
