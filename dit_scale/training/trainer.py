"""The training run: set up, go on from the last good checkpoint, step until done or asked to stop."""

import logging
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale import checkpoint as checkpoints
from dit_scale.autoencoder import copy_decoder, load_autoencoder
from dit_scale.checkpoint import Checkpoint, Description, Position
from dit_scale.config import Config, resolved
from dit_scale.data.loader import Batch, LatentDataset, Loader
from dit_scale.distributed.engine import build_engine, plan_batches
from dit_scale.distributed.fragments import OptimizerState
from dit_scale.distributed.runtime import World, device_of, process_group, set_threads
from dit_scale.interop import load_into, read_weights
from dit_scale.models import DiT
from dit_scale.models.flops import peak_flops, training_flops_per_image
from dit_scale.recipe import model_of, objective_of
from dit_scale.sampling import AUTOENCODER_FOLDER
from dit_scale.training import run_folder
from dit_scale.training.metrics import METRICS, Console, Lines, Wandb, cut_back
from dit_scale.training.preemption import StopRequest, clear_marker, write_marker
from dit_scale.training.preview import Preview
from dit_scale.training.state import TrainingState
from dit_scale.training.step import Problem, learning_rate_at, train_step

log = logging.getLogger(__name__)


def train(config: Config, stop: StopRequest) -> None:
    """Train until ``config.train.steps`` or until asked to stop; either way everything is saved."""
    world = World.from_environment()
    device = device_of(world)
    set_threads(world, config.engine.threads_per_rank)
    plan_batches(config.train, world.world_size)  # refuse early what cannot be split
    with ExitStack() as stack:
        if world.is_rank_zero:
            stack.enter_context(run_folder.only_writer(Path(config.run_dir)))
        stack.enter_context(process_group(world, device))
        trainer = stack.enter_context(Trainer(config, world, device))
        trainer.run(stop)


class Trainer:
    """Everything a run needs, built once; ``run`` is the loop."""

    def __init__(self, config: Config, world: World, device: str):
        self.config, self.world, self.device = config, world, device
        self.run_dir = Path(config.run_dir)
        self.checkpoints = self.run_dir / "checkpoints"
        self.dataset = LatentDataset.open(Path(config.data.path))
        manifest = self.dataset.manifest
        run_folder.check_scale(manifest, config)
        self.data_description: dict[str, Any] = {
            "fingerprint": manifest.fingerprint,
            "latent": asdict(manifest.latents),
            "class_names": list(manifest.class_names),
            "autoencoder": manifest.autoencoder,
        }
        found = checkpoints.find_last_good(self.checkpoints, world)
        if found is not None:
            run_folder.check_resume(found.description, config, self.data_description)

        self.plan = plan_batches(config.train, world.world_size)
        objective = objective_of(config.diffusion, config.model.learn_sigma)
        model = self._new_model(is_new_run=found is None)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.flops_per_image = training_flops_per_image(model)
        self.problem = Problem(objective, manifest.latents, config.seed, config.model.label_dropout, model.null_label)
        self.engine = build_engine(model, config.engine, config.train, self.plan, world, device)
        self.state = TrainingState(OptimizerState(self.engine), config.train.ema_decay)
        self.position = self._begin(found, weights)
        self.preview = self._new_preview(objective)
        self._prepare_folder()
        self.step_ended = time.monotonic()

    def run(self, stop: StopRequest) -> None:
        """Step until done or asked to stop; a step's numbers are read one step late, so as not to wait for them."""
        total = self.config.train.steps
        reason: str | None = None
        pending: _Report | None = None
        with self._loader() as batches:
            while self.position.step < total and reason is None:
                report = self._step(next(batches), stop)
                reason, pending = self._settle(pending), report
                if reason is not None or self._is_due(self.position.step):
                    reason, pending = self._settle(pending) or reason, None
                    self._save_and_draw(last=self.position.step == total or reason is not None)
        if reason is not None and self.position.step < total and self.world.is_rank_zero:
            write_marker(self.run_dir, reason, self.position.step)
            print(f"stopped on {reason} at step {self.position.step}, everything saved", flush=True)

    def _step(self, batch: Batch, stop: StopRequest) -> "_Report":
        """Take one step and start summing its numbers over ranks."""
        rate = learning_rate_at(self.position.step, self.config.train)
        loss_sum, grad_norm = train_step(self.engine, self.problem, batch, self.plan, rate)
        self.state.ema.update()
        self.position = Position(self.position.step + 1, self.position.images_seen + self.plan.global_batch_size)
        asked = torch.tensor(float(bool(stop)), device=loss_sum.device)
        numbers = torch.stack((loss_sum.float(), asked))
        work = dist.all_reduce(numbers, async_op=True)
        now = time.monotonic()
        seconds, self.step_ended = now - self.step_ended, now
        return _Report(self.position, batch.keys, rate, seconds, numbers, grad_norm, work, stop)

    def _settle(self, report: "_Report | None") -> str | None:
        """Read a step's numbers, write them down, and return why to stop if any rank was asked to."""
        if report is None:
            return None
        report.work.wait()
        loss_sum, asked = report.numbers.tolist()
        loss, grad_norm = loss_sum / self.plan.global_batch_size, report.grad_norm.item()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"the loss is {loss} and the gradient norm {grad_norm} at step {report.position.step}; "
                f"the last checkpoint is from before that"
            )
        if self.keys is not None:
            self.keys.write({"step": report.position.step, "keys": report.keys})
        if self.world.is_rank_zero:
            self._log(report, loss, grad_norm)
        return (report.stop.signal_name or "a signal to another rank") if asked else None

    def _log(self, report: "_Report", loss: float, grad_norm: float) -> None:
        images_per_second = self.plan.global_batch_size / report.seconds
        peak = peak_flops(self.device, self.config.engine.precision)
        metrics = {
            "step": report.position.step,
            "images_seen": report.position.images_seen,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": report.learning_rate,
            "step_seconds": report.seconds,
            "images_per_second": images_per_second,
            "mfu": images_per_second * self.flops_per_image / (peak * self.world.world_size) if peak else None,
        }
        self.lines.write(metrics)
        self.console.show(metrics)
        self.wandb.log(metrics)

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint or a preview follows this step."""
        config = self.config
        every = (config.checkpoint.every_steps, config.preview.every_steps)
        return step == config.train.steps or any(n and step % n == 0 for n in every)

    def _save_and_draw(self, last: bool) -> None:
        step, config = self.position.step, self.config
        if last or step % config.checkpoint.every_steps == 0:
            description = Description(self.position, resolved(config), self.data_description, run_folder.versions())
            self.state.save(self.checkpoints, description, self.world)
            if self.world.is_rank_zero:
                checkpoints.prune(self.checkpoints, config.checkpoint.keep)
        if self.preview is not None and (step == config.train.steps or step % config.preview.every_steps == 0):
            path = self.preview.draw(self.state.ema, step)
            if self.world.is_rank_zero:
                self.wandb.log_picture(path, step)
        self.step_ended = time.monotonic()  # saving and drawing are not part of the next step's time

    # ------------------------------------------------------------ setting up

    def _new_model(self, is_new_run: bool) -> DiT:
        manifest, config = self.dataset.manifest, self.config
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = model_of(config.model, manifest.latents, len(manifest.class_names))
        if is_new_run and config.init_from is not None:
            origin = Path(config.init_from)
            weights = checkpoints.open_whole(origin).whole("ema") if origin.is_dir() else read_weights(origin)
            load_into(model, weights, config.init_from)
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

    def _new_preview(self, objective: Any) -> Preview | None:
        if self.config.preview.every_steps == 0:
            return None
        manifest = self.dataset.manifest
        autoencoder = load_autoencoder(manifest.autoencoder, folder=Path(self.config.data.path), device=self.device)
        return Preview(
            self.config, objective, manifest.latents, list(manifest.class_names), autoencoder, self.world, self.device
        )

    def _prepare_folder(self) -> None:
        """Cut the logs back to the checkpoint, then open them; other ranks wait until that is done."""
        step = self.position.step
        if self.world.is_rank_zero:
            clear_marker(self.run_dir)
            run_folder.write_config(self.run_dir, self.config)
            copy_decoder(
                self.dataset.manifest.autoencoder, Path(self.config.data.path), self.run_dir / AUTOENCODER_FOLDER
            )
            for path in (self.run_dir / METRICS, *self.run_dir.glob("keys-rank*.jsonl")):
                cut_back(path, step)
            self.lines = Lines(self.run_dir / METRICS)
            self.console = Console(self.config.train.steps, self.config.log.every_steps)
            self.wandb = Wandb(self.config, self.run_dir)
        dist.barrier()
        keys = self.run_dir / f"keys-rank{self.world.rank}.jsonl"
        self.keys = Lines(keys) if self.config.data.record_keys else None

    def _loader(self) -> Loader:
        data = self.config.data
        return Loader(
            self.dataset,
            seed=self.config.seed,
            global_batch_size=self.plan.global_batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
            start=self.position.images_seen,
            mirror=data.mirror,
            verify=data.verify,
            prefetch_batches=data.prefetch_batches,
            pin_memory=self.device.startswith("cuda"),
        )

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.keys is not None:
            self.keys.close()
        if self.world.is_rank_zero:
            self.lines.close()
            self.wandb.close()


@dataclass(frozen=True)
class _Report:
    """What a step left behind; its numbers may still be on their way."""

    position: Position
    keys: list[str]
    learning_rate: float
    seconds: float
    numbers: Tensor
    """The loss summed over all images, and how many ranks were asked to stop."""
    grad_norm: Tensor
    work: Any
    stop: StopRequest
