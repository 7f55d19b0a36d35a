"""The loop of a training run: a step in the order in which it happens, and what follows some of them.

Nothing in a step waits for the device. What the step before has left, its loss and whether its update happened, is
read and logged while the device computes: only the log lags.
"""

import logging
import math
import time
from pathlib import Path

from dit_scale.checkpoint import Position
from dit_scale.data.loader import Batch
from dit_scale.errors import NonFinite
from dit_scale.optim import learning_rate_at
from dit_scale.supervision.markers import STOPPED, write_marker
from dit_scale.supervision.preemption import StopRequest
from dit_scale.training.bad_step_policies import RolledBack
from dit_scale.training.build import Run
from dit_scale.training.metrics import say
from dit_scale.training.pending import Flags, PendingMetrics, StepClock
from dit_scale.training.run_folder import BAD_STEPS
from dit_scale.zero.update_guard import NOTHING_PASSES

log = logging.getLogger(__name__)


class Loop:
    """Steps of a run until it is done, or asked to stop."""

    def __init__(self, run: Run, stop: StopRequest):
        self._run, self._stop = run, stop
        self.position = run.start
        """After the last step that was taken."""
        self._pending: PendingMetrics | None = None
        """What it left."""
        self._reason: str | None = None
        """Why the ranks have agreed to stop."""
        self._clock, self._cpu_clock = StepClock(), StepClock(time.process_time)
        self._last_step = min(run.config.train.steps, stop.after_step or run.config.train.steps)

    def run(self) -> str | None:
        """Step to the end; return why the run stopped before it, if it did (collective)."""
        while True:
            try:
                self._take_steps()
                break
            except RolledBack as back:
                self._go_back(back)
        if self.position.step >= self._run.config.train.steps:
            return None
        reason, step = self._reason or "--stop-after", self.position.step
        if self._run.world.is_rank_zero:
            if self._reason is not None:  # else it was to end here: no launcher should start it again
                write_marker(Path(self._run.config.run_dir), STOPPED, {"reason": reason, "step": step})
            say(f"stopped on {reason} at step {step}, everything saved")
        return reason

    def _take_steps(self) -> None:
        phases = self._run.phases
        with self._run.open_batches(self.position) as batches:
            while not self._is_last():
                with phases("data", step=self.position.step + 1):
                    batch = next(batches)
                with phases("compute"):
                    self._step(batch)
                    if is_due := self._is_save_due() or self._run.periodic.is_due(self.position.step):
                        self._log_last_step()
                if is_due:
                    self._periodic_work()

    def _step(self, batch: Batch) -> None:
        """Take one step: gradient, update, averages; have its numbers summed, and log those of the step before."""
        run, learner, step = self._run, self._run.learner, self.position.step + 1
        losses = learner.gradient(batch)
        rate = learning_rate_at(self.position.step, run.config.train)
        limit = NOTHING_PASSES if run.bad_steps.is_known(step) else run.spikes.limit()
        verdict = learner.update(rate, limit)  # discarded on the device where it is above the limit, or not finite
        run.spikes.note(verdict)
        learner.state.update_emas(verdict)
        self.position = Position(step, self.position.images_seen + learner.plan.global_batch_size)
        seconds = self._clock.lap()
        if run.world.is_rank_zero and run.time_limit.is_near(run.saving.seconds_expected(), seconds):
            self._stop.ask("time_limit")
        flags = Flags(len(batch.damaged), bool(self._stop), run.saving.wants_retry(), self._cpu_clock.lap())
        sums = run.metrics.sum_over_ranks(losses, flags, run.phases.lap())
        now = time.time()
        before = self._pending
        self._pending = PendingMetrics(self.position, batch, losses.total, rate, limit, verdict, seconds, now, sums)
        self._log(before)

    def _log(self, pending: PendingMetrics | None) -> None:
        """Log a step, and do as its numbers say (collective); waits for them."""
        if pending is None:
            return
        run, step, was_updated = self._run, pending.position.step, pending.verdict.was_updated
        summed = run.metrics.read(pending)
        if was_updated and not math.isfinite(summed.loss):
            raise NonFinite(
                f"the loss is {summed.loss} at step {step} though its gradient is finite; go on from the last "
                f"checkpoint, in fp32 if it comes again"
            )
        run.log.records(step, pending.batch.keys, pending.batch.damaged)
        run.log.metrics(run.metrics.line(pending, summed))
        if line := run.metrics.rank_line(step):
            run.log.ranks(line)
        run.saving.retries_now = summed.flags.wants_retry > 0
        if summed.flags.is_asked_to_stop:
            self._reason = self._reason or self._stop.signal_name or "a signal to another rank"
        if was_updated:
            return
        if run.bad_steps.is_known(step):
            log.warning("step %d is skipped, as %s says", step, BAD_STEPS)
        else:
            run.bad_steps.judge(pending)

    def _log_last_step(self) -> None:
        last, self._pending = self._pending, None
        self._log(last)

    def _periodic_work(self) -> None:
        """Measure, save and draw, as far as each follows this step (collective); asked to stop, save alone."""
        run, step, state, is_stopping = self._run, self.position.step, self._run.learner.state, self._reason is not None
        with self._clock.paused(), self._cpu_clock.paused():
            measured = {} if is_stopping else run.periodic.measure(step, run.learner.engine, state, run.log)
            if self._is_save_due():
                with run.phases("save"):
                    run.log.sync()
                    run.saving.save(run.description(self.position, measured), state)
                    if self._is_last():
                        run.saving.finish(or_fail=True)
            if not is_stopping:
                run.periodic.draw(step, state, run.log)

    def _is_save_due(self) -> bool:
        is_due = self.position.step % self._run.config.checkpoint.every_steps == 0
        return is_due or self._is_last() or self._run.saving.retries_now

    def _is_last(self) -> bool:
        return self._reason is not None or self.position.step >= self._last_step

    def _go_back(self, back: RolledBack) -> None:
        """Load the last good checkpoint; the bad step is skipped when it comes again (collective)."""
        run, found = self._run, back.checkpoint
        self._pending = None  # of a step that comes again
        run.learner.state.restore(found)
        run.spikes.restore(found.description.grad_norms)
        self.position = found.description.position
        run.log.cut_back(self.position.step)
        if run.world.is_rank_zero:
            say(f"back at {found.folder.name}; step {back.step} will be skipped")
        self._clock.restart()
        self._cpu_clock.restart()
