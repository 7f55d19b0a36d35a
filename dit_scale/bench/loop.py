"""A real training loop of one rank on latents that are made up, for benchmarks to run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit_scale.config import EngineConfig, TrainSection
from dit_scale.data.loader import Batch
from dit_scale.diffusion import build_objective, total
from dit_scale.distributed.runtime import World
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.models.kernel_timing import AttentionShape, backend_of_training
from dit_scale.parameters import DTYPES, num_trained
from dit_scale.training.loss import LossFunction
from dit_scale.training.routing import TokenDraws
from dit_scale.training.state import TrainingState
from dit_scale.training.step import compute_gradient
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import build_engine, wrap_blocks
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import UpdateGuard, Verdict

CLASSES = 1000


class Loop:
    """Steps under DeepSpeed as `dit-scale train` takes them, with the EMA; the process group must have been joined."""

    def __init__(
        self,
        model: DiT,
        latents: LatentSpec,
        engine: EngineConfig,
        batch_size: int,
        micro_batch_size: int,
        world: World,
        device: str,
        routing: TokenDraws | None = None,
    ):
        train = TrainSection(global_batch_size=batch_size, micro_batch_size_per_gpu=micro_batch_size)
        self.plan = plan_batches(train, world.world_size)
        self.loss_function = LossFunction(
            build_objective("gaussian", learn_sigma=model.learn_sigma),
            latents,
            0,
            0.1,
            model.condition,
            routing=routing,
        )
        self.num_parameters = num_trained(model)
        if device.startswith("cuda") and engine.kernels == "auto":  # as a run settles it
            shape, dtype = AttentionShape.of(model, micro_batch_size), DTYPES[engine.precision]
            model.attention = backend_of_training(model.attention, shape, torch.device(device), dtype)
        self.engine = build_engine(model, engine, train, self.plan, world, device)
        self.guard = UpdateGuard(self.engine)
        self.state = TrainingState(OptimizerState(self.engine), train)
        count = self.plan.batch_size_per_rank
        positions = torch.arange(count) + world.rank * count
        moments = torch.randn(count, *latents.moments_shape, generator=torch.Generator().manual_seed(world.rank))
        batch = Batch(positions, moments.half(), positions % CLASSES, [""] * count, {})
        self.batch = _pinned(batch) if device.startswith("cuda") else batch
        self._verdict: Verdict | None = None

    def step(self) -> Tensor:
        """Take a step and return the mean loss, which nothing waits for."""
        losses = compute_gradient(self.engine, self.loss_function, self.batch, self.plan)
        self._update()
        self._move_ema()
        return losses.total.mean()

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return a step cut into what it consists of, to be called in this order."""
        return {
            "forward and backward": lambda: compute_gradient(self.engine, self.loss_function, self.batch, self.plan),
            "optimizer": self._update,
            "EMA": self._move_ema,
        }

    def _update(self) -> None:
        self._verdict = self.guard.step()

    def _move_ema(self) -> None:
        assert self._verdict is not None, "the optimizer comes first"
        self.state.update_emas(self._verdict)


def _pinned(batch: Batch) -> Batch:
    """Return a batch in the memory in which the loader puts it for a GPU."""
    return batch._replace(
        positions=batch.positions.pin_memory(),
        moments=batch.moments.pin_memory(),
        conditions=batch.conditions.pin_memory(),
    )


class PlainLoop:
    """The same step without DeepSpeed, for what that costs: the weights in fp32 updated where they lie."""

    def __init__(self, model: DiT, loss_function: LossFunction, batch: Batch, engine: EngineConfig, device: str):
        self._model = model.to(device)
        self._loss_function, self._batch, self._device = loss_function, batch, device
        wrap_blocks(model, engine)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._average = [parameter.detach().clone() for parameter in self._trained]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=0.0, fused=True)

    def step(self) -> None:
        """Take a step and update the EMA."""
        for part in self.parts().values():
            part()

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return a step cut into what it consists of, to be called in this order."""
        batch = self._batch

        def forward_and_backward() -> None:
            moments, conditions, positions = (
                tensor.to(self._device, non_blocking=True)
                for tensor in (batch.moments, batch.conditions, batch.positions)
            )
            total(self._loss_function(self._model, moments, conditions, positions)).mean().backward()

        def update() -> None:
            norm = nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
            optimizer: Any = self._optimizer
            optimizer.found_inf = (~torch.isfinite(norm)).float()  # as the update guard has it judged
            optimizer.step()
            optimizer.zero_grad()

        @torch.no_grad()
        def average() -> None:
            torch._foreach_lerp_(self._average, [p.detach() for p in self._trained], 1e-4)

        return {"forward and backward": forward_and_backward, "optimizer": update, "EMA": average}
