"""A process that takes steps which are shortened and steps which are discarded, beside plain PyTorch's.

    gate_worker DEVICE STAGE …

Prints one JSON line: for each ZeRO stage how far the weights are from PyTorch's, relative to how far they moved, and
how often the host read a number from the device during a step.
"""

import json
import sys
import warnings
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.distributed.transfers import Readback
from dit_scale.training.state import TrainingState
from dit_scale.training.step import LossFunction, compute_gradient
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import build_engine
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import NOTHING_PASSES, UpdateGuard
from tests.distributed.worker import LATENTS, batch_at, small_model, whole_master

BATCH, STEPS = 4, 4
DISCARDED = 2
LONGEST = 0.49
"""Between the norms of the gradients here, so that some steps are shortened."""


class Reads(TorchDispatchMode):
    """Counts the numbers that the host takes from a tensor, and verdicts that it reads: it would wait for them.

    On a GPU whatever else waits is an error.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.count, self._is_on_gpu = 0, device != "cpu"

    def __enter__(self) -> "Reads":
        self._read = Readback.read
        Readback.read = self._counted  # type: ignore[assignment, method-assign]
        if self._is_on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        Readback.read = self._read  # type: ignore[method-assign]
        if self._is_on_gpu:
            torch.cuda.set_sync_debug_mode("default")

    def _counted(self) -> list[float]:
        self.count += 1
        return [0.0, 0.0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def expected_weights(loss_function: LossFunction, world: World, device: str) -> dict[str, Tensor]:
    """Return the weights after the steps as plain PyTorch takes them."""
    model = small_model().to(device)
    trained, norms = [parameter for parameter in model.parameters() if parameter.requires_grad], []
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    for step in range(STEPS):
        batch = batch_at(step, BATCH, world)
        optimizer.zero_grad()
        inputs = (tensor.to(device) for tensor in (batch.moments, batch.conditions, batch.positions))
        loss_function.loss(model, *inputs).mean().backward()
        norm = nn.utils.clip_grad_norm_(trained, LONGEST)
        norms.append(float(norm))
        if step != DISCARDED:
            optimizer.step()
    assert min(norms) < LONGEST < max(norms), f"of {norms} some are to be shortened, and some are not"
    return {name: value.cpu() for name, value in model.named_parameters() if value.requires_grad}


def measure(
    stage: Literal[0, 1, 2, 3], expected: dict[str, Tensor], loss_function: LossFunction, world: World, device: str
) -> dict[str, Any]:
    """Take the steps at a stage."""
    train = TrainSection(global_batch_size=BATCH, micro_batch_size_per_gpu=2, learning_rate=1e-3, weight_decay=0.0)
    plan = plan_batches(train, world.world_size)
    model = small_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    engine = build_engine(model, EngineConfig(zero_stage=stage, precision="fp32"), train, plan, world, device)
    state = TrainingState(OptimizerState(engine), train)
    state.start_from(weights)
    gate, verdicts, reads = UpdateGuard(engine, LONGEST), [], Reads(device)
    for step in range(STEPS):
        batch = batch_at(step, BATCH, world)
        with reads if step else nullcontext():  # the first one puts tables on the GPU
            compute_gradient(engine, loss_function, batch, plan)
            verdicts.append(gate.step(NOTHING_PASSES) if step == DISCARDED else gate.step())
    masters = {name: value.cpu() for name, value in whole_master(state).items()}
    engine.destroy()
    difference = max(float((masters[name] - value).abs().max()) for name, value in expected.items())
    moved = max(float((weights[name] - value).abs().max()) for name, value in expected.items())
    return {
        "difference": difference / moved,
        "updated": [verdict.was_updated for verdict in verdicts],
        "reads": reads.count,
    }


def main(device: str, stages: list[int]) -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    loss_function = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.1, Labels(5))
    expected = expected_weights(loss_function, world, device)
    with process_group(world, device):
        found = {stage: measure(stage, expected, loss_function, world, device) for stage in stages}  # type: ignore[arg-type]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1], [int(stage) for stage in sys.argv[2:]])
