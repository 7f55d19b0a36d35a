"""The training run: set up, go on from the last good checkpoint, step until done or asked to stop."""

import logging
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.autoencoder import copy_decoder
from dit_scale.checkpoint import Checkpoint, Description, Position, find_last_good
from dit_scale.checkpoint.run_config import write_config
from dit_scale.config import Config, resolved
from dit_scale.data.loader import Batch
from dit_scale.distributed.devices import memory_of
from dit_scale.distributed.runtime import (
    World,
    device_of,
    job_end_time,
    keep_freed_memory,
    process_group,
    set_threads,
)
from dit_scale.distributed.transfers import Readback, send
from dit_scale.errors import NonFinite
from dit_scale.files import full_disk_explained
from dit_scale.models import DiT
from dit_scale.planning.flops import peak_flops, training_flops_per_image
from dit_scale.recipe import model_of, objective_of
from dit_scale.sampling import AUTOENCODER_FOLDER
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.supervision.history import Recorder
from dit_scale.supervision.markers import STOPPED, write_marker
from dit_scale.supervision.out_of_memory import out_of_memory_explained
from dit_scale.supervision.phases import Phases
from dit_scale.supervision.preemption import StopRequest, TimeLimit
from dit_scale.supervision.stragglers import ForwardTime, RankTimes
from dit_scale.supervision.watchdog import Watchdog
from dit_scale.training import run_folder
from dit_scale.training.attention_choice import settle_attention
from dit_scale.training.bad_steps import FILE_NAME as BAD_STEPS
from dit_scale.training.bad_steps import BadSteps, watched
from dit_scale.training.data import autoencoder_folder, describe, open_dataset, open_loader
from dit_scale.training.initial import load_initial
from dit_scale.training.metrics import say
from dit_scale.training.periodic import PeriodicTasks
from dit_scale.training.run_log import RunLog
from dit_scale.training.saving import Saving
from dit_scale.training.state import TrainingState
from dit_scale.training.step import LossFunction, compute_gradient, learning_rate_at
from dit_scale.versions import versions
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import DTYPES, build_engine, set_learning_rate
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import NOTHING_PASSES, UpdateGuard, Verdict

log = logging.getLogger(__name__)


def train(config: Config, stop: StopRequest) -> None:
    """Train until ``config.train.steps`` or until asked to stop; either way everything is saved."""
    world = World.from_environment()
    device = device_of(world)
    set_threads(world, config.engine.threads_per_rank)
    if device == "cpu":
        keep_freed_memory()
    plan_batches(config.train, world.world_size)  # refuse early what cannot be split
    with ExitStack() as stack:
        recorder = Recorder(Path(config.run_dir), world, config.engine.zero_stage)
        stack.enter_context(full_disk_explained(config.run_dir, name="run folder"))
        if world.is_rank_zero:
            stack.enter_context(run_folder.only_writer(Path(config.run_dir)))
            stack.enter_context(recorder)
        last_resort_seconds = 1800.0 + 2.0 * config.watchdog.long_seconds  # the watchdog, which says more, is first
        store = stack.enter_context(process_group(world, device, last_resort_seconds))
        stack.push(recorder)  # any rank's failure is written down before the ranks part
        phases = Phases()
        stack.enter_context(Watchdog(config.watchdog, phases, world, store, Path(config.run_dir)))
        stack.enter_context(out_of_memory_explained(config, world, device))
        trainer = stack.enter_context(Trainer(config, world, device, phases))
        recorder.finish(trainer.run(stop), trainer.position.step)


class Trainer:
    """Everything a run needs, built once; ``run`` is the loop."""

    def __init__(self, config: Config, world: World, device: str, phases: Phases):
        self.config, self.world, self.device, self.phases = config, world, device, phases
        self.run_dir = Path(config.run_dir)
        self.checkpoints = self.run_dir / "checkpoints"
        self.conveniences = Conveniences(self.run_dir, world)
        self.dataset = open_dataset(config.data, config.model.condition)
        self.data_description = describe(self.dataset)
        found = find_last_good(self.checkpoints, world)
        if found is not None:
            run_folder.check_resume(found, config, self.data_description)

        self.plan = plan_batches(config.train, world.world_size)
        objective = objective_of(config.diffusion, config.model.learn_sigma)
        model = self._new_model(is_new_run=found is None)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        largest = max(part.stop - part.start for part in self.plan.micro_batches)
        dtype = DTYPES[config.engine.precision]
        settle_attention(model, largest, torch.device(device), dtype, self.run_dir, world, self.conveniences)
        self.flops_per_image = training_flops_per_image(model)
        latents = self.dataset.manifest.latents
        self.loss_function = LossFunction(objective, latents, config.seed, config.model.label_dropout, model.condition)
        self.engine = build_engine(model, config.engine, config.train, self.plan, world, device)
        self.gate = UpdateGuard(self.engine, config.train.max_grad_norm)
        self.rank_times = RankTimes(world, ForwardTime(self.engine.module), config.log.every_steps)
        train = config.train
        self.state = TrainingState(OptimizerState(self.engine), train)
        self.position = self._begin(found, weights)
        grad_norms = [] if found is None else found.description.grad_norms
        self.bad_steps = BadSteps(self.run_dir, train, world, grad_norms)
        self.saving = Saving(self.checkpoints, config.checkpoint, world, self.state.part().num_bytes())
        self.time_limit = TimeLimit(job_end_time(), config.checkpoint.time_limit_margin_seconds)
        self.periodic = PeriodicTasks(
            config, self.dataset, self.loss_function, world, device, phases, self.conveniences
        )
        self.log = self._prepare_folder()
        self.pending: _Report | None = None
        self.reason: str | None = None
        self.step_ended = time.monotonic()

    def run(self, stop: StopRequest) -> str | None:
        """Step until done, or asked to stop: then return why; going back where a bad step asks for that."""
        while True:
            try:
                self._run(stop)
                break
            except _RollBack as bad:
                self._go_back(bad)
        if self.reason is None or self.position.step >= self.config.train.steps:
            return None
        if self.world.is_rank_zero:
            write_marker(self.run_dir, STOPPED, {"reason": self.reason, "step": self.position.step})
            say(f"stopped on {self.reason} at step {self.position.step}, everything saved")
        return self.reason

    def _run(self, stop: StopRequest) -> None:
        """Step; how a step ended is read while the device computes the next one's gradient, so as not to wait."""
        start = self.position.images_seen
        with open_loader(self.dataset, self.config, self.world, start, self.device.startswith("cuda")) as batches:
            while self.position.step < self.config.train.steps and self.reason is None:
                with self.phases("data", step=self.position.step + 1):
                    batch = next(batches)
                with self.phases("compute"):
                    self._step(batch, stop)
                    if (is_due := self._is_due()) and (bad := self._settle()):
                        self._judge_bad_step(bad)
                if is_due:
                    self._between_steps()

    def _step(self, batch: Batch, stop: StopRequest) -> None:
        """Take one step: gradient, end of the step before, update; and start summing its numbers over ranks."""
        losses = compute_gradient(self.engine, self.loss_function, batch, self.plan)
        if bad := self._settle():
            self.gate.step(NOTHING_PASSES)  # looking into the bad step takes the engine: this gradient is given up
            self._judge_bad_step(bad)
            losses = compute_gradient(self.engine, self.loss_function, batch, self.plan)
        done, step = self.position, self.position.step + 1
        rate, limit = learning_rate_at(done.step, self.config.train), self.bad_steps.limit_at(step)
        set_learning_rate(self.engine, rate)
        verdict = self.gate.step(limit)
        self.position = Position(step, done.images_seen + self.plan.global_batch_size)
        now = time.monotonic()
        seconds, self.step_ended = now - self.step_ended, now
        if self.world.is_rank_zero and self.time_limit.is_near(self.saving.seconds_expected(), seconds):
            stop.ask("time_limit")
        flags = [float(len(batch.damaged)), float(bool(stop)), float(self.saving.wants_retry())]
        own = torch.cat((torch.tensor(flags), self.rank_times.own(self.phases.lap())))
        sums = torch.cat((losses.sum().view(1), send(own, losses.device)))
        numbers = Readback(sums, dist.all_reduce(sums, async_op=True))
        self.pending = _Report(self.position, batch, rate, limit, seconds, time.time(), verdict, numbers, stop)

    def _settle(self) -> "_Report | None":
        """End the last step: move the averages, log it, note whether any rank asks for a stop or a save.

        Returns its report where its update was discarded and nobody knows why yet.
        """
        report, self.pending = self.pending, None
        if report is None:
            return None
        step, verdict = report.position.step, report.verdict
        is_known = self.bad_steps.is_known(step)
        if verdict.was_updated:
            self.state.update_emas()
            self.bad_steps.note_good(verdict.norm)
        elif is_known:
            log.warning("step %d is passed over, as %s says", step, BAD_STEPS)
        loss_sum, damaged, asked, wants_retry, *times = report.numbers.read()
        loss = loss_sum / max(1.0, self.plan.global_batch_size - damaged)
        if verdict.was_updated and not math.isfinite(loss):
            raise NonFinite(
                f"the loss is {loss} at step {step} though its gradient is finite; go on from the last checkpoint, in "
                f"fp32 if it comes again"
            )
        self.log.records(step, report.batch.keys, report.batch.damaged)
        self._log(report, loss, times)
        self.saving.retries_now = wants_retry > 0
        if asked:
            self.reason = self.reason or report.stop.signal_name or "a signal to another rank"
        return None if verdict.was_updated or is_known else report

    def _log(self, report: "_Report", loss: float, times: list[float]) -> None:
        images_per_second, norm = self.plan.global_batch_size / report.seconds, report.verdict.norm
        peak = peak_flops(self.device, self.config.engine.precision)
        metrics = {
            "step": report.position.step,
            "time": report.time,
            "images_seen": report.position.images_seen,
            "loss": loss if math.isfinite(loss) else None,
            "grad_norm": norm if math.isfinite(norm) else None,
            "learning_rate": report.learning_rate,
            "step_seconds": report.seconds,
            "images_per_second": images_per_second,
            "mfu": images_per_second * self.flops_per_image / (peak * self.world.world_size) if peak else None,
        }
        metrics |= self.rank_times.metrics(times)
        self.log.metrics(metrics if report.verdict.was_updated else metrics | {"skipped": True})
        if line := self.rank_times.line(report.position.step):
            self.log.ranks(line)

    # ------------------------------------------------------------ bad steps

    def _judge_bad_step(self, report: "_Report") -> None:
        """Find out what is wrong with a step whose update was discarded, and do as the policy says (collective)."""
        step, batch = report.position.step, report.batch
        with watched(self.engine.module) as offender:
            losses = compute_gradient(self.engine, self.loss_function, batch, self.plan)
            self.gate.step(NOTHING_PASSES)
        suspects = [key for key, loss in zip(batch.keys, losses.tolist(), strict=True) if not math.isfinite(loss)]
        what = self.bad_steps.record(step, report.limit, report.verdict.norm, offender(), suspects)
        policy = self.config.train.on_bad_step
        if self.world.is_rank_zero:
            log.warning("%s: %s", what, "its update is left out" if policy == "skip" else policy.replace("_", " "))
        if policy == "stop":
            raise NonFinite(
                f"{what}; started again the run goes on without that batch; where its data were mended, delete "
                f"'{self.run_dir / BAD_STEPS}' first"
            )
        if policy == "roll_back":
            self.saving.finish()
            found = find_last_good(self.checkpoints, self.world)
            if found is not None:
                raise _RollBack(step, found)
            log.warning("no checkpoint to go back to from step %d: only its update is left out", step)

    def _go_back(self, bad: "_RollBack") -> None:
        """Load the last good checkpoint; the bad step is passed over when it comes again (collective)."""
        found = bad.checkpoint
        self.state.restore(found)
        self.position = found.description.position
        self.bad_steps.go_back(found.description.grad_norms)
        self.log.cut_back(self.position.step)
        if self.world.is_rank_zero:
            say(f"back at {found.folder.name}; step {bad.step} will be passed over")
        self.step_ended = time.monotonic()

    # ------------------------------------------------------------ between steps

    def _is_due(self) -> bool:
        """Whether anything follows this step before the next."""
        return self._is_save_due() or self.periodic.is_due(self.position.step)

    def _is_save_due(self) -> bool:
        is_due = self.position.step % self.config.checkpoint.every_steps == 0
        return is_due or self._is_last() or self.saving.retries_now

    def _is_last(self) -> bool:
        return self.reason is not None or self.position.step == self.config.train.steps

    def _between_steps(self) -> None:
        """Measure, save and draw, as far as each follows this step (collective); asked to stop, save alone."""
        begun = time.monotonic()
        step, ema, is_stopping = self.position.step, self.state.ema, self.reason is not None
        measured = {} if is_stopping else self.periodic.measure(step, self.engine, ema, self.log)
        if self._is_save_due():
            self._save(measured)
        if not is_stopping:
            self.periodic.draw(step, ema, self.log)
        self.step_ended += time.monotonic() - begun  # nothing of this is part of the next step's time

    def _save(self, measured: dict[str, float]) -> None:
        """Save; what is written at the end is waited for."""
        description = Description(
            self.position,
            resolved(self.config),
            self.data_description,
            versions(),
            measured,
            self.bad_steps.grad_norms,
        )
        with self.phases("save"):
            self.log.sync()
            self.saving.save(description, self.state)
            if self._is_last():
                self.saving.finish(or_fail=True)

    # ------------------------------------------------------------ setting up

    def _new_model(self, is_new_run: bool) -> DiT:
        config = self.config
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = model_of(config.model, self.dataset.manifest.latents, len(self.dataset.class_names))
        if is_new_run and config.init_from is not None:
            load_initial(model, config.init_from)
        return model

    def _begin(self, found: Checkpoint | None, weights: dict[str, Tensor]) -> Position:
        """Load the checkpoint, or begin with initial weights; return where the run stands."""
        if found is None:
            self.state.start_from(weights)
            return Position()
        self.state.restore(found)
        if self.world.is_rank_zero:
            print(f"going on from {found.folder.name}", flush=True)
        return found.description.position

    def _prepare_folder(self) -> RunLog:
        """Write down what the run is, and open its logs (collective)."""
        if self.world.is_rank_zero:
            write_config(self.run_dir, self.config, f"{self.world.world_size} x {memory_of(self.device).name}")
            identity = self.dataset.manifest.autoencoder
            with self.conveniences.attempt("keeping the decoder"):
                copy_decoder(identity, autoencoder_folder(self.dataset), self.run_dir / AUTOENCODER_FOLDER)
        return RunLog(self.config, self.world, self.position.step, self.conveniences)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.saving.close()
        self.log.__exit__()


class _RollBack(Exception):
    """A bad step after which the run goes back to its last checkpoint; raised on every rank alike."""

    def __init__(self, step: int, checkpoint: Checkpoint):
        super().__init__(step)
        self.step, self.checkpoint = step, checkpoint


@dataclass(frozen=True)
class _Report:
    """What a step left behind; its numbers may still be on their way."""

    position: Position
    batch: Batch
    learning_rate: float
    limit: float
    """The gradient norm above which it is bad."""
    seconds: float
    time: float
    """When it ended, in seconds since 1970."""
    verdict: Verdict
    numbers: Readback
    """Summed over ranks: losses, records set aside, who was asked to stop, who wants to save again; ranks' times."""
    stop: StopRequest
