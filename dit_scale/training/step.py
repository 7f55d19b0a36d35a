"""One training step, in the order in which it happens."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.config import TrainSection
from dit_scale.data.loader import Batch
from dit_scale.diffusion import Objective
from dit_scale.distributed.engine import BatchPlan, set_learning_rate
from dit_scale.draws import Stream
from dit_scale.latents import LatentSpec, sample_latent


@dataclass(frozen=True)
class Problem:
    """What is trained: objective, latents and the draws that each image gets."""

    objective: Objective
    latents: LatentSpec
    seed: int
    label_dropout: float
    null_label: int | None

    def loss(self, denoiser: Callable[..., Tensor], moments: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        """Return the loss of each image, [N]: moments [N, 2C, H, W], labels [N], stream positions [N]."""
        shape = self.latents.shape
        latent = sample_latent(moments, draws.normal(self.seed, Stream.POSTERIOR, positions, shape), self.latents)
        noise = draws.normal(self.seed, Stream.NOISE, positions, shape)
        time = self.objective.times_from_uniform(draws.uniform(self.seed, Stream.TIME, positions))
        if self.null_label is not None:
            dropped = draws.uniform(self.seed, Stream.LABEL_DROPOUT, positions) < self.label_dropout
            labels = torch.where(dropped, self.null_label, labels)
        return self.objective.loss(denoiser, latent, noise, time, labels).loss


def train_step(
    engine: Any, problem: Problem, batch: Batch, plan: BatchPlan, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """Update the weights once from this rank's part of a global batch.

    Returns this rank's summed loss over its images and the global gradient norm before clipping, both still
    on the device.
    """
    set_learning_rate(engine, learning_rate)
    dtype = next(engine.module.parameters()).dtype

    def denoiser(noised_latent: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return engine(noised_latent.to(dtype), timestep, label)

    loss_sum = torch.zeros((), device=engine.device)
    grad_norm = None
    for part in plan.micro_batches:
        moments, labels, positions = (
            tensor[part].to(engine.device, non_blocking=True)
            for tensor in (batch.moments, batch.labels, batch.positions)
        )
        loss = problem.loss(denoiser, moments, labels, positions).sum()
        # DeepSpeed divides by the number of micro steps; the gradient is to be the mean over the rank's images.
        engine.backward(loss * (plan.gradient_accumulation_steps / plan.batch_size_per_rank))
        if engine.zero_optimization_stage() == 0 and engine.is_gradient_accumulation_boundary():
            grad_norm = _grad_norm(engine)  # DeepSpeed reports 0 here
        engine.step()
        loss_sum += loss.detach()
    if grad_norm is None:
        grad_norm = torch.as_tensor(engine.get_global_grad_norm(), device=engine.device)
    return loss_sum, grad_norm.float()


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Return the rate of update number ``step`` (counted from 0): warm-up, then constant or cosine."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.rate_schedule == "constant":
        return train.learning_rate
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * cosine


def _grad_norm(engine: Any) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
