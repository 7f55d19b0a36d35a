"""Which elements of which parameter this rank holds in fp32, at every ZeRO stage.

The one module that knows DeepSpeed's private layout. Checkpoints and the EMA are written in its terms,
(parameter, offset), so they do not depend on the number of ranks or on the stage.
Written for DeepSpeed 0.19.8; `tests/distributed` compares it with brute force at stages 0 to 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + numel) of a flattened parameter, at [start, …) of flat tensor number ``flat``."""

    name: str
    offset: int
    numel: int
    flat: int
    start: int

    def of(self, flats: Sequence[Tensor]) -> Tensor:
        """Return the fragment's view, [numel], in a list of flat tensors."""
        return flats[self.flat].narrow(0, self.start, self.numel)


class OptimizerState:
    """The fp32 master weights and Adam moments of an engine, as fragments of named parameters.

    ``owned`` are the fragments that only this rank writes: over all ranks they cover every trainable
    parameter exactly once. ``held`` are those it needs to go on: the same, but all of them at stage 0.
    """

    def __init__(self, engine: Any):
        self._engine = engine
        self._stage: int = engine.zero_optimization_stage()
        self._trainable = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
        self.shapes = {name: _full_shape(parameter) for name, parameter in self._trainable.items()}
        if self._stage == 0:
            self._keys = list(self._trainable.values())
            self.held = [
                Fragment(name, 0, parameter.numel(), index, 0)
                for index, (name, parameter) in enumerate(self._trainable.items())
            ]
            self.owned = _share(self.held, dist.get_rank(), dist.get_world_size())
        elif self._stage in (1, 2):
            self._keys = engine.optimizer.single_partition_of_fp32_groups
            self.held = self.owned = list(self._fragments_of_stages_1_and_2())
        else:
            self._keys = engine.optimizer.fp32_partitioned_groups_flat
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

    def moments(self, name: str) -> list[Tensor]:
        """Return the flat tensors of ``exp_avg`` or ``exp_avg_sq``, made of zeros before the first step."""
        return [self._state_of(key)[name].view(-1) for key in self._keys]

    def flats(self, kind: str) -> list[Tensor]:
        """Return the flat tensors of ``master`` or of one of ADAM_MOMENTS."""
        return self.master if kind == "master" else self.moments(kind)

    @property
    def adam_step(self) -> int:
        """The number of updates that Adam has counted."""
        return int(self._state_of(self._keys[0])["step"])

    @adam_step.setter
    def adam_step(self, value: int) -> None:
        for key in self._keys:
            self._state_of(key)["step"].fill_(value)

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

    def _state_of(self, key: Tensor) -> dict[str, Tensor]:
        base: Any = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        state: dict[str, Tensor] = base.state[key]
        if "exp_avg" not in state:
            # A fused AdamW keeps its count on the parameter's device, the others on the CPU.
            fused = base.param_groups[0].get("fused")
            state["step"] = torch.zeros((), dtype=torch.float32, device=key.device if fused else "cpu")
            state.update({name: torch.zeros_like(key) for name in ADAM_MOMENTS})
        return state

    def _fragments_of_stages_1_and_2(self) -> Any:
        for name, parameter in self._trainable.items():
            mapping = parameter._hp_mapping  # None where the rank holds nothing of it
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(name, here.start, here.numel, mapping.param_group_index, there.start)

    def _fragments_of_stage_3(self) -> Any:
        optimizer = self._engine.optimizer
        rank = dist.get_rank()
        for name, parameter in self._trainable.items():
            flat, start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset = rank * padded
            numel = min(padded, parameter.ds_numel - offset)
            if numel > 0:
                yield Fragment(name, offset, numel, flat, start)


def laid_out(
    owned: Sequence[Fragment], tensors: Sequence[Tensor], shapes: dict[str, torch.Size], device: torch.device | str
) -> dict[str, Tensor]:
    """Return this rank's fragments in their places of whole, flat parameters, with 0 elsewhere."""
    whole = {name: torch.zeros(shape.numel(), device=device) for name, shape in shapes.items()}
    for fragment, tensor in zip(owned, tensors, strict=True):
        whole[fragment.name].narrow(0, fragment.offset, fragment.numel).copy_(tensor)
    return whole


def completed(parts: dict[str, Tensor], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return whole parameters: what each rank laid out, with the other ranks' fragments filled in (collective)."""
    for part in parts.values():  # each element is nonzero on one rank at most, so the sum is exact
        dist.all_reduce(part)
    return {name: parts[name].view(shape) for name, shape in shapes.items()}


def _full_shape(parameter: Any) -> torch.Size:
    return torch.Size(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.shape


def _share(fragments: Sequence[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """Cut replicated fragments so that each rank owns an equal, contiguous part of all elements."""
    total = sum(fragment.numel for fragment in fragments)
    begin, end = total * rank // world_size, total * (rank + 1) // world_size
    share, position = [], 0
    for fragment in fragments:
        first, last = max(begin, position), min(end, position + fragment.numel)
        if first < last:
            skipped = first - position
            share.append(
                Fragment(
                    fragment.name, fragment.offset + skipped, last - first, fragment.flat, fragment.start + skipped
                )
            )
        position += fragment.numel
    return share
