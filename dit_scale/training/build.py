"""From a configuration to everything that a run's loop works with."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_scale.autoencoder import copy_decoder
from dit_scale.checkpoint import Checkpoint, Description, Position, find_last_good
from dit_scale.checkpoint.run_config import write_config
from dit_scale.config import Config, resolved
from dit_scale.data.loader import LatentDataset, Loader
from dit_scale.diffusion import FlowMatching, Objective
from dit_scale.distributed.devices import memory_of
from dit_scale.distributed.runtime import World, job_end_time
from dit_scale.models import DiT
from dit_scale.optim import own_rates
from dit_scale.parameters import DTYPES
from dit_scale.planning.flops import peak_flops, training_flops_per_image
from dit_scale.recipe import model_of, objective_of
from dit_scale.sampling import AUTOENCODER_FOLDER
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.supervision.phases import Phases
from dit_scale.supervision.preemption import TimeLimit
from dit_scale.supervision.stragglers import ForwardTime, RankTimes
from dit_scale.training import run_folder
from dit_scale.training.alignment import Alignment, alignment_of, load_encoders
from dit_scale.training.attention_choice import settle_attention
from dit_scale.training.bad_step_policies import policy_of
from dit_scale.training.bad_steps import BadSteps
from dit_scale.training.contrastive import Contrast
from dit_scale.training.data import autoencoder_folder, describe, open_dataset, open_loader
from dit_scale.training.early import EarlyLoss
from dit_scale.training.initial import load_initial
from dit_scale.training.learner import Learner
from dit_scale.training.loss import AuxiliaryLoss, LossFunction
from dit_scale.training.pending import StepMetrics
from dit_scale.training.periodic import PeriodicTasks
from dit_scale.training.routing import token_draws
from dit_scale.training.run_folder import CHECKPOINTS
from dit_scale.training.run_log import RunLog
from dit_scale.training.saving import Saving
from dit_scale.training.spikes import SpikeLimit
from dit_scale.training.state import TrainingState
from dit_scale.versions import versions
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import build_engine
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import UpdateGuard


@dataclass(frozen=True)
class Run:
    """What the loop works with; all of it lives as long as the run does."""

    config: Config
    world: World
    phases: Phases
    dataset: LatentDataset
    data: dict[str, Any]
    """What checkpoints keep of the dataset."""
    learner: Learner
    start: Position
    """Where the run begins, or goes on."""
    spikes: SpikeLimit
    bad_steps: BadSteps
    metrics: StepMetrics
    saving: Saving
    time_limit: TimeLimit
    periodic: PeriodicTasks
    log: RunLog

    def open_batches(self, position: Position) -> Loader:
        """Return the loader of this rank's batches from a position on."""
        is_on_gpu = self.learner.engine.device.type == "cuda"
        return open_loader(self.dataset, self.config, self.world, position.images_seen, is_on_gpu)

    def description(self, position: Position, measured: dict[str, float]) -> Description:
        """Return what a checkpoint at a position says of itself; waits for the device."""
        return Description(position, resolved(self.config), self.data, versions(), measured, self.spikes.norms())


@contextmanager
def build(config: Config, world: World, device: str, phases: Phases) -> Iterator[Run]:
    """Open all that a run needs; at the end, or where this fails, what was opened is closed (collective)."""
    run_dir, train = Path(config.run_dir), config.train
    conveniences = Conveniences(run_dir, world)
    config, encoders = load_encoders(config)
    with ExitStack() as stack:
        opened = open_dataset(config.data, config.model.condition, with_crops=bool(encoders))
        dataset = stack.enter_context(closing(opened))
        data = describe(dataset)
        found = find_last_good(run_dir / CHECKPOINTS, world)
        if found is not None:
            run_folder.check_resume(found, config, data)
        model = _new_model(config, dataset, is_new_run=found is None)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        peak = peak_flops(device, config.engine.precision)
        flops_of_step = _flops_of_step(model, config.routing.until_step) if peak else None
        alignment = alignment_of(config, encoders, model.grid_side, device)
        del encoders  # alignment has its own, of the right size
        learner = _learner(model, config, dataset, world, device, conveniences, alignment)
        rank_times = RankTimes(world, ForwardTime(learner.engine.module), config.log.every_steps)
        start = _begin(learner.state, found, weights, world)
        del weights
        spikes = SpikeLimit(train.spike_factor, found.description.grad_norms if found else [], learner.guard.device)
        saving = Saving(run_dir / CHECKPOINTS, config.checkpoint, world, learner.state.part().num_bytes())
        policy = policy_of(train.on_bad_step, run_dir, saving, world)
        bad_steps = BadSteps(run_dir, train, world, policy, learner.offender_in)
        time_limit = TimeLimit(job_end_time(), config.checkpoint.time_limit_margin_seconds)
        periodic = PeriodicTasks(config, dataset, learner.loss_function, world, device, phases, conveniences)
        _write_down(config, dataset, world, device, conveniences)
        peaks = peak and peak * world.world_size
        metrics = StepMetrics(learner.plan, rank_times, flops_of_step, peaks, own_rates(train))
        log = stack.enter_context(RunLog(config, world, start.step, conveniences))
        stack.enter_context(closing(saving))
        stack.enter_context(closing(bad_steps))
        yield Run(
            *(config, world, phases, dataset, data, learner, start),
            *(spikes, bad_steps, metrics, saving, time_limit, periodic, log),
        )


def _new_model(config: Config, dataset: LatentDataset, is_new_run: bool) -> DiT:
    """Return the network with its initial weights, which do not depend on what was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        classes = len(dataset.class_names)
        model = model_of(config, dataset.manifest.latents, classes, config.engine.kernels, in_training=True)
    if is_new_run and config.init_from is not None:
        load_initial(model, config.init_from, config.diffusion)
    return model


def _flops_of_step(model: DiT, until_step: int) -> Callable[[int], int]:
    """Return how many floating-point operations an image takes in a step of this number."""
    routed, dense = training_flops_per_image(model), training_flops_per_image(model, all_tokens=True)
    return lambda step: dense if 0 < until_step < step else routed


def _learner(
    model: DiT,
    config: Config,
    dataset: LatentDataset,
    world: World,
    device: str,
    conveniences: Conveniences,
    alignment: Alignment | None,
) -> Learner:
    """Wrap the network for training on this rank (collective)."""
    train, latents = config.train, dataset.manifest.latents
    plan = plan_batches(train, world.world_size, config.diffusion.images_together)
    objective = objective_of(config.diffusion, model)
    largest = max(part.stop - part.start for part in plan.micro_batches)
    dtype = DTYPES[config.engine.precision]
    settle_attention(model, largest, torch.device(device), dtype, Path(config.run_dir), world, conveniences)
    dropout, beside = config.model.label_dropout, _losses_beside(model, config, objective)
    beside = beside if alignment is None else (*beside, alignment)
    routing = token_draws(config, model)
    loss_function = LossFunction(objective, latents, config.seed, dropout, model.condition, beside, routing)
    engine = build_engine(model, config.engine, train, plan, world, device)
    guard = UpdateGuard(engine, train.max_grad_norm)
    return Learner(plan, loss_function, engine, guard, TrainingState(OptimizerState(engine), train))


def _losses_beside(model: DiT, config: Config, objective: Objective) -> tuple[AuxiliaryLoss, ...]:
    """Return the losses beside the objective's that have a weight."""
    settings, losses = config.diffusion, list[AuxiliaryLoss]()
    if isinstance(objective, FlowMatching) and settings.contrastive_weight:
        losses.append(Contrast(objective, settings.contrastive_weight))
    if model.config.early_block:
        losses.append(EarlyLoss(objective, settings.early_weight))
    return tuple(losses)


def _begin(state: TrainingState, found: Checkpoint | None, weights: dict[str, Tensor], world: World) -> Position:
    """Load the checkpoint, or begin with initial weights; return where the run stands."""
    if found is None:
        state.start_from(weights)
        return Position()
    state.restore(found)
    if world.is_rank_zero:
        print(f"going on from {found.folder.name}", flush=True)
    return found.description.position


def _write_down(config: Config, dataset: LatentDataset, world: World, device: str, conveniences: Conveniences) -> None:
    """Keep in the run folder what the run is, and the decoder of its latents."""
    run_dir = Path(config.run_dir)
    if world.is_rank_zero:
        write_config(run_dir, config, f"{world.world_size} x {memory_of(device).name}")
        identity = dataset.manifest.autoencoder
        with conveniences.attempt("keeping the decoder"):
            copy_decoder(identity, autoencoder_folder(dataset), run_dir / AUTOENCODER_FOLDER)
