"""What a training step computes: the loss, its gradient, the rate of its update."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.conditioning import Condition
from dit_scale.config import TrainSection
from dit_scale.data.loader import Batch
from dit_scale.diffusion import Objective
from dit_scale.draws import Stream
from dit_scale.latents import LatentSpec, sample_latent
from dit_scale.zero.batches import BatchPlan


@dataclass(frozen=True)
class LossFunction:
    """What is trained: objective, latents and the draws that each image gets."""

    objective: Objective
    latents: LatentSpec
    seed: int
    label_dropout: float
    condition: Condition

    def loss(self, denoiser: Callable[..., Tensor], moments: Tensor, conditions: Tensor, positions: Tensor) -> Tensor:
        """Return the loss of each image, [N]: moments [N, 2C, H, W], conditions [N, ...], stream positions [N]."""
        shape = self.latents.shape
        latent = sample_latent(moments, draws.normal(self.seed, Stream.POSTERIOR, positions, shape), self.latents)
        noise = draws.normal(self.seed, Stream.NOISE, positions, shape)
        time = self.objective.times_from_uniform(draws.uniform(self.seed, Stream.TIME, positions))
        if self.condition.has_null and self.label_dropout > 0:
            is_dropped = draws.uniform(self.seed, Stream.LABEL_DROPOUT, positions) < self.label_dropout
            conditions = self.condition.dropped(conditions, is_dropped)
        return self.objective.loss(denoiser, latent, noise, time, conditions).loss


def compute_gradient(engine: Any, loss_function: LossFunction, batch: Batch, plan: BatchPlan) -> Tensor:
    """Leave the gradient of a global batch in the engine, from this rank's part of it; the next step applies it.

    Returns the loss of each of this rank's images, [n], still on the device (0 for a record set aside).
    """
    dtype = next(engine.module.parameters()).dtype

    def denoiser(noised_latent: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        return engine(noised_latent.to(dtype), timestep, condition)

    is_whole = torch.ones(len(batch.positions))
    is_whole[list(batch.damaged)] = 0.0  # a record set aside has no part in the step
    all_losses = []
    for part in plan.micro_batches:
        moments, conditions, positions = (
            tensor[part].to(engine.device, non_blocking=True)
            for tensor in (batch.moments, batch.conditions, batch.positions)
        )
        losses = loss_function.loss(denoiser, moments, conditions, positions)  # [micro batch]
        losses = losses * is_whole[part].to(engine.device) if batch.damaged else losses
        # DeepSpeed divides by the number of micro steps; the gradient is to be the mean over the rank's images.
        engine.backward(losses.sum() * (plan.gradient_accumulation_steps / plan.batch_size_per_rank))
        if not engine.is_gradient_accumulation_boundary():
            engine.step()  # counts the micro step
        all_losses.append(losses.detach())
    return torch.cat(all_losses).float()


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Return the rate of update number ``step`` (counted from 0): warm-up, then constant or cosine."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.rate_schedule == "constant":
        return train.learning_rate
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * cosine
