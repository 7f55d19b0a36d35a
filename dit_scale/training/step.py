"""What a training step computes: the loss and its gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_scale import draws
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


def compute_gradient(engine: Any, loss_function: LossFunction, batch: Batch, plan: BatchPlan) -> Tensor:
    """Leave the gradient of a global batch in the engine, from this rank's part of it; the next step applies it.

    Returns the loss of each of this rank's images, [n], still on the device (0 for a record set aside).
    """
    dtype = next(engine.module.parameters()).dtype

    def denoiser(noised_latent: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return engine(noised_latent.to(dtype), timestep, label)

    is_whole = torch.ones(len(batch.positions))
    is_whole[list(batch.damaged)] = 0.0  # a record set aside has no part in the step
    all_losses = []
    for part in plan.micro_batches:
        moments, labels, positions = (
            tensor[part].to(engine.device, non_blocking=True)
            for tensor in (batch.moments, batch.labels, batch.positions)
        )
        losses = loss_function.loss(denoiser, moments, labels, positions)  # [micro batch]
        losses = losses * is_whole[part].to(engine.device) if batch.damaged else losses
        # DeepSpeed divides by the number of micro steps; the gradient is to be the mean over the rank's images.
        engine.backward(losses.sum() * (plan.gradient_accumulation_steps / plan.batch_size_per_rank))
        if not engine.is_gradient_accumulation_boundary():
            engine.step()  # counts the micro step
        all_losses.append(losses.detach())
    return torch.cat(all_losses).float()
