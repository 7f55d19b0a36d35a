"""A process that takes steps which are shortened and steps which are discarded, beside plain PyTorch's.

    gate_worker DEVICE OPTIMIZER STAGE …

Prints one JSON line: for each ZeRO stage how far the weights are from PyTorch's, relative to how far they moved, which
averages are not what a host makes that knows of each update, and how often the host read a number from the device
during a step.
"""

import json
import sys
import warnings
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_scale.checkpoint.post_hoc import decay_at, gamma_of
from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective, total
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.distributed.transfers import Readback
from dit_scale.training.loss import LossFunction
from dit_scale.training.spikes import FEWEST_NORMS, SpikeLimit
from dit_scale.training.state import TrainingState
from dit_scale.training.step import compute_gradient
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.update_guard import NOTHING_PASSES, UpdateGuard
from tests.distributed.worker import LATENTS, batch_at, begin, small_model, whole_master

BATCH, STEPS = 4, 4
DISCARDED = 2
WIDTH = 0.1
"""Of a power-function average, whose decay depends on the number of the update."""
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


def plain_optimizers(name: str, parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Return what plain PyTorch has for an optimizer of ours."""
    matrices = [value for key, value in parameters.items() if key.startswith("blocks.") and value.ndim == 2]
    rest = [value for key, value in parameters.items() if not (key.startswith("blocks.") and value.ndim == 2)]
    if name == "muon":
        muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0, fused=True)]
    if name == "two-rates":
        slow = {"params": matrices, "lr": 0.5e-3, "weight_decay": 0.1}
        return [torch.optim.AdamW([slow, {"params": rest}], lr=1e-3, weight_decay=0.0)]
    return [torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.0)]


def shortened(parameters: list[nn.Parameter], norm_there: float | None) -> Tensor:
    """Shorten gradients as PyTorch does; by a norm that is given, to the bit as the guard does with it."""
    if norm_there is None:
        return nn.utils.clip_grad_norm_(parameters, LONGEST)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    assert abs(float(norm) / norm_there - 1.0) < 1e-6
    norm = torch.full_like(norm, norm_there)
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.div_(((norm + 1e-6) / LONGEST).clamp(min=1.0))
    return norm


def expected_weights(
    name: str, loss_function: LossFunction, device: str, norms_there: list[float]
) -> dict[str, Tensor]:
    """Return the weights after the steps as plain PyTorch takes them, of the whole batch on one rank.

    Muon multiplies in bf16, which makes much of the last bit of a norm: it is given those that the guard has found.
    """
    model = small_model().to(device)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizers, norms = plain_optimizers(name, trained), []
    for step in range(STEPS):
        batch = batch_at(step, BATCH, World())
        model.zero_grad()
        for part in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):  # micro batches, as the engine has them
            inputs = (tensor[part].to(device) for tensor in (batch.moments, batch.conditions, batch.positions))
            (total(loss_function(model, *inputs)).sum() / BATCH).backward()
        norms.append(float(shortened(list(trained.values()), norms_there[step] if name == "muon" else None)))
        for optimizer in optimizers if step != DISCARDED else ():
            optimizer.step()
    assert min(norms) < LONGEST < max(norms), f"of {norms} some are to be shortened, and some are not"
    return {name: value.cpu() for name, value in trained.items()}


def is_average(state: TrainingState, kind: str, first: list[Tensor], masters: list[list[Tensor]]) -> bool:
    """Whether an average is, to the last bit, what a host that knows of each update makes of the weights after it."""
    averages = [weights.clone() for weights in first]
    for number, weights in enumerate(masters, 1):
        decay = 0.9 if kind == "ema" else decay_at(number, gamma_of(WIDTH))
        torch._foreach_lerp_(averages, weights, 1.0 - decay)
    expected = state.optimizer.owned_in(averages)
    return all(torch.equal(mine, theirs) for mine, theirs in zip(state.emas[kind].tensors, expected, strict=True))


def measure(
    stage: Literal[0, 1, 2, 3],
    train: TrainSection,
    loss_function: LossFunction,
    world: World,
    device: str,
) -> dict[str, Any]:
    """Take the steps at a stage."""
    plan = plan_batches(train, world.world_size)
    model = small_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    engine, state = begin(model, EngineConfig(zero_stage=stage, precision="fp32"), train, world, device)
    first = [weights.clone() for weights in state.optimizer.owned_masters]
    gate, verdicts, reads = UpdateGuard(engine, LONGEST), [], Reads(device)
    spikes, masters_of_updates = SpikeLimit(100.0, [1.0] * FEWEST_NORMS, gate.device), []
    for step in range(STEPS):
        batch = batch_at(step, BATCH, world)
        with reads if step else nullcontext():  # the first one puts tables on the GPU
            compute_gradient(engine, loss_function, batch, plan)
            verdict = gate.step(NOTHING_PASSES if step == DISCARDED else spikes.limit())
            spikes.note(verdict)
            state.update_emas(verdict)
        verdicts.append(verdict)
        if step != DISCARDED:
            masters_of_updates.append([weights.clone() for weights in state.optimizer.owned_masters])
    kept = [verdict.norm for verdict in verdicts if verdict.was_updated]
    assert spikes.norms() == [1.0] * FEWEST_NORMS + kept
    assert state.num_updates == state.optimizer.adam_step == STEPS - 1
    averages_differ = [kind for kind in state.emas if not is_average(state, kind, first, masters_of_updates)]
    masters = {name: value.cpu() for name, value in whole_master(state).items()}
    engine.destroy()
    expected = expected_weights(train.optimizer, loss_function, device, [verdict.norm for verdict in verdicts])
    difference = max(float((masters[name] - value).abs().max()) for name, value in expected.items())
    moved = max(float((weights[name] - value).abs().max()) for name, value in expected.items())
    return {
        "difference": difference / moved,
        "averages_differ": averages_differ,
        "updated": [verdict.was_updated for verdict in verdicts],
        "reads": reads.count,
    }


def main(device: str, optimizer: str, stages: list[int]) -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    loss_function = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.1, Labels(5))
    train = TrainSection(
        optimizer=optimizer,  # type: ignore[arg-type]
        global_batch_size=BATCH,
        micro_batch_size_per_gpu=2,
        learning_rate=1e-3,
        weight_decay=0.0,
        ema_decay=0.9,
        power_ema_widths=(WIDTH,),
    )
    with process_group(world, device):
        found = {stage: measure(stage, train, loss_function, world, device) for stage in stages}  # type: ignore[arg-type]
    if world.is_rank_zero:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1], sys.argv[2], [int(stage) for stage in sys.argv[3:]])
