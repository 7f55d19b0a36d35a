"""What a training step computes: the gradient of a global batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_scale.data.loader import Batch
from dit_scale.diffusion import Terms, total
from dit_scale.zero.batches import BatchPlan


class Losses(NamedTuple):
    """The losses of this rank's images, still on the device; each [n], 0 for a record set aside."""

    total: Tensor
    """The weighted sum of the terms: what the gradient is of."""
    terms: dict[str, Tensor]
    """Without their weights, by name."""


def compute_gradient(engine: Any, loss_function: Callable[..., Terms], batch: Batch, plan: BatchPlan) -> Losses:
    """Leave the gradient of a global batch in the engine, from this rank's part of it; the next step applies it."""
    is_whole = torch.ones(len(batch.positions))
    is_whole[list(batch.damaged)] = 0.0  # a record set aside has no part in the step
    totals: list[Tensor] = []
    values: dict[str, list[Tensor]] = {}
    for part in plan.micro_batches:
        inputs = (batch.moments, batch.conditions, batch.positions, *(() if batch.crops is None else (batch.crops,)))
        inputs = tuple(tensor[part].to(engine.device, non_blocking=True) for tensor in inputs)
        counts = is_whole[part].to(engine.device) if batch.damaged else None
        terms = loss_function(engine, *inputs)
        losses = _counted(total(terms), counts)  # [micro batch]
        # DeepSpeed divides by the number of micro steps; the gradient is to be the mean over the rank's images.
        engine.backward(losses.sum() * (plan.gradient_accumulation_steps / plan.batch_size_per_rank))
        if not engine.is_gradient_accumulation_boundary():
            engine.step()  # counts the micro step
        totals.append(losses.detach())
        for name, term in terms.items():
            values.setdefault(name, []).append(_counted(term.value.detach(), counts))
    return Losses(torch.cat(totals).float(), {name: torch.cat(parts).float() for name, parts in values.items()})


def _counted(losses: Tensor, counts: Tensor | None) -> Tensor:
    return losses if counts is None else losses * counts
