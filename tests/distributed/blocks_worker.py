"""A rank that trains a network with every switch and a head under each ZeRO stage; run under torchrun.

    blocks_worker FOLDER

Prints one JSON line on rank zero: by stage the losses, and whether a run in two parts ends as the run in a piece.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from dit_scale.checkpoint import Checkpoint, Description, Position, Retention, Saver, content_digests, weights_of
from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.models import DiT
from dit_scale.training.loss import LossFunction
from dit_scale.training.state import TrainingState
from dit_scale.training.step import compute_gradient
from dit_scale.weights import load_trained
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import build_engine, set_learning_rate
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import UpdateGuard
from tests.distributed.worker import LATENTS, batch_at
from tests.networks import fill

BATCH, STEPS = 4, 2
TRAIN = TrainSection(global_batch_size=BATCH, micro_batch_size_per_gpu=1, ema_decay=0.9, power_ema_widths=(0.1,))


def network(seed: int) -> DiT:
    """Return a network with every switch, whose every weight counts."""
    torch.manual_seed(seed)
    model = DiT(
        **{"latent_size": 8, "patch_size": 2, "hidden_size": 48, "depth": 2, "num_heads": 4, "num_classes": 5},
        **{"norm": "rmsnorm", "mlp": "swiglu", "rope": True, "qk_norm": True, "adaln_shift": False},
        **{"time_embedding": "fourier", "head_hidden_size": 64, "head_depth": 1, "head_num_heads": 4},
    )
    fill(model, std=0.05)
    return model


class Trainee:
    """An engine with its state, and the losses of the steps that it took."""

    def __init__(self, stage: Literal[0, 1, 2, 3], seed: int, world: World):
        self.world, self.plan = world, plan_batches(TRAIN, world.world_size)
        model = network(seed)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        config = EngineConfig(zero_stage=stage, precision="fp32", checkpoint_every_blocks=2)
        self.engine = build_engine(model, config, TRAIN, self.plan, world, "cpu")
        self.state = TrainingState(OptimizerState(self.engine), TRAIN)
        self.state.start_from(weights)
        self.guard = UpdateGuard(self.engine)
        self.loss_function = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.5, Labels(5))
        self.losses: list[float] = []

    def train(self, first: int) -> None:
        for step in range(first, first + STEPS):
            set_learning_rate(self.engine, 1e-3)
            batch = batch_at(step, BATCH, self.world)
            loss = compute_gradient(self.engine, self.loss_function, batch, self.plan).total.sum()
            self.state.update_emas(self.guard.step())
            dist.all_reduce(loss)
            self.losses.append(loss.item() / BATCH)

    def save(self, folder: Path) -> Checkpoint:
        saver = Saver(folder, self.world, Retention())
        saver.save(Description(Position(STEPS, STEPS * BATCH), {}, {}), self.state.part())
        outcome = saver.wait()
        assert outcome is not None and outcome.trouble is None, outcome
        return Checkpoint(folder / f"step-{STEPS:08d}")


def of_stage(stage: Literal[0, 1, 2, 3], folder: Path, world: World) -> dict[str, Any]:
    """Train in a piece, and in two parts of which the second begins as another network."""
    whole = Trainee(stage, 0, world)
    table = whole.engine.module.t_embedder.W.clone()
    whole.train(0)
    saved = whole.save(folder / str(stage))
    whole.train(STEPS)
    resumed = Trainee(stage, 1, world)
    resumed.state.restore(saved)
    resumed.train(STEPS)
    averages = whole.state.ema.completed(whole.state.ema.laid_out("cpu"))
    for kind in ("master", "ema", "post-hoc-0.1"):
        load_trained(sampled := network(2), weights_of(saved, kind), kind)
        assert torch.equal(sampled.t_embedder.W, table), kind  # type: ignore[arg-type]
    load_trained(network(2), averages, "the average of a run that goes on")
    digests = [content_digests(trainee.state.part()) for trainee in (whole, resumed)]
    for trainee in (whole, resumed):
        trainee.engine.destroy()
    return {"losses": whole.losses, "resumed": resumed.losses, "same": digests[0] == digests[1]}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    with process_group(world, "cpu"):
        results = {f"stage {stage}": of_stage(stage, folder, world) for stage in (0, 1, 2, 3)}  # type: ignore[arg-type]
        elsewhere = Trainee(3, 1, world)  # what another stage has saved
        elsewhere.state.restore(Checkpoint(folder / "0" / f"step-{STEPS:08d}"))
        elsewhere.train(STEPS)
        results["stage 3 from 0"] = {"losses": results["stage 0"]["losses"][:STEPS] + elsewhere.losses}
        dist.barrier()
        if world.is_rank_zero:
            print(json.dumps(results), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main(Path(sys.argv[1]))
