"""A real training loop of one rank on latents that are made up, for benchmarks to run."""

from collections.abc import Callable

import torch

from dit_scale.config import EngineConfig, TrainSection
from dit_scale.data.loader import Batch
from dit_scale.diffusion import build_objective
from dit_scale.distributed.engine import build_engine, plan_batches
from dit_scale.distributed.fragments import OptimizerState
from dit_scale.distributed.gate import UpdateGate
from dit_scale.distributed.runtime import World
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.training.state import TrainingState
from dit_scale.training.step import Problem, train_step

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
    ):
        train = TrainSection(global_batch_size=batch_size, micro_batch_size_per_gpu=micro_batch_size)
        self.plan = plan_batches(train, world.world_size)
        self.problem = Problem(build_objective("gaussian"), latents, 0, 0.1, model.null_label)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.engine = build_engine(model, engine, train, self.plan, world, device)
        self.gate = UpdateGate(self.engine)
        self.state = TrainingState(OptimizerState(self.engine), train)
        count = self.plan.batch_size_per_rank
        positions = torch.arange(count) + world.rank * count
        moments = torch.randn(count, *latents.moments_shape, generator=torch.Generator().manual_seed(world.rank))
        self.batch = Batch(positions, moments.half(), positions % CLASSES, [""] * count, {})

    def step(self) -> float:
        """Take a step, update the EMA, and return the mean loss."""
        losses, _ = train_step(self.engine, self.gate, self.problem, self.batch, self.plan, 1e-4)
        self.state.update_emas()
        return losses.mean().item()

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return a step cut into what it consists of, to be called in this order."""
        plan, batch, engine, problem = self.plan, self.batch, self.engine, self.problem
        dtype = next(engine.module.parameters()).dtype

        def forward_and_backward() -> None:
            for part in plan.micro_batches:
                moments, labels, positions = (
                    tensor[part].to(engine.device) for tensor in (batch.moments, batch.labels, batch.positions)
                )
                losses = problem.loss(lambda x, t, y: engine(x.to(dtype), t, y), moments, labels, positions)
                engine.backward(losses.sum() * (plan.gradient_accumulation_steps / plan.batch_size_per_rank))
                if not engine.is_gradient_accumulation_boundary():
                    engine.step()

        return {
            "forward and backward": forward_and_backward,
            "optimizer": self.gate.step,
            "EMA": self.state.update_emas,
        }
