"""What is measured and drawn between steps: the validation loss, evaluations and preview grids."""

import logging
from typing import Any

from dit_scale.autoencoder import Autoencoder
from dit_scale.checkpoint.averages import youth
from dit_scale.config import Config
from dit_scale.data.loader import LatentDataset
from dit_scale.distributed.runtime import World
from dit_scale.sampling import Sampler
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.supervision.phases import Phases
from dit_scale.training.ema_images import decoder_of_run, sampler_of_run
from dit_scale.training.evaluation import Evaluation, check_is_measured
from dit_scale.training.loss import LossFunction
from dit_scale.training.preview import Preview
from dit_scale.training.run_log import RunLog
from dit_scale.training.state import TrainingState
from dit_scale.training.validation import Validation

log = logging.getLogger(__name__)


class PeriodicTasks:
    """Each as often as its section of the configuration says."""

    def __init__(
        self,
        config: Config,
        dataset: LatentDataset,
        loss_function: LossFunction,
        world: World,
        device: str,
        phases: Phases,
        conveniences: Conveniences,
    ):
        """Raises InputError for settings that do not fit, before the first step (collective)."""
        self._config, self._phases, self._is_told = config, phases, not world.is_rank_zero
        validation, evaluation, preview = config.validation, config.evaluation, config.preview
        self._validation = Validation(dataset, loss_function, config, world) if validation.every_steps else None
        sampler = _sampler_of(config, dataset, device, conveniences)
        self._preview = Preview(config, sampler, world, conveniences) if sampler and preview.every_steps else None
        self._evaluation = (
            Evaluation(config, sampler, dataset, world, conveniences) if sampler and evaluation.every_steps else None
        )
        if world.is_rank_zero:
            names = ["validation_loss"] if self._validation else []
            check_is_measured(config, names + (self._evaluation.metric_names() if self._evaluation else []))

    def is_due(self, step: int) -> bool:
        """Whether anything follows this step."""
        return self._validates(step) or self._evaluates(step) or self._draws(step)

    def measure(self, step: int, engine: Any, state: TrainingState, run_log: RunLog) -> dict[str, float]:
        """Return what is measured after this step, written down (collective)."""
        measured: dict[str, float] = {}
        if self._validation is not None and self._validates(step):
            with self._phases("validation"):
                loss = self._validation.loss(engine)
            measured["validation_loss"] = loss
            run_log.validation(step, loss, self._validation.num_images)
        if self._evaluation is not None and self._evaluates(step):
            self._tell_youth(state)
            with self._phases("evaluation"):
                metrics = self._evaluation.scores(state.ema, step)
            if metrics:
                measured |= metrics
                run_log.evaluation(step, metrics)
        return measured

    def draw(self, step: int, state: TrainingState, run_log: RunLog) -> None:
        """Draw the preview that follows this step (collective)."""
        if self._preview is None or not self._draws(step):
            return
        self._tell_youth(state)
        with self._phases("preview"):
            picture = self._preview.draw(state.ema, step)
        if picture is not None:
            run_log.picture(picture, step)

    def _tell_youth(self, state: TrainingState) -> None:
        """Say once, on rank zero, that the images show what the run began with rather than what it has learnt."""
        if self._is_told:
            return
        self._is_told = True
        if said := youth(self._config.train.ema_decay, state.num_updates):
            log.warning(
                "previews and evaluations show the EMA: %s; dit-scale sample --weights master shows the trained "
                "weights, and a smaller train.ema_decay forgets the start sooner",
                said,
            )

    def _validates(self, step: int) -> bool:
        return bool(self._validation) and step % self._config.validation.every_steps == 0

    def _evaluates(self, step: int) -> bool:
        return bool(self._evaluation) and (self._is_last(step) or step % self._config.evaluation.every_steps == 0)

    def _draws(self, step: int) -> bool:
        return bool(self._preview) and (self._is_last(step) or step % self._config.preview.every_steps == 0)

    def _is_last(self, step: int) -> bool:
        return step == self._config.train.steps


def _sampler_of(config: Config, dataset: LatentDataset, device: str, conveniences: Conveniences) -> Sampler | None:
    """Return what draws; None where nothing is to be drawn, or no decoder is there for previews (collective)."""
    if not (config.evaluation.every_steps or config.preview.every_steps):
        return None

    def load() -> Autoencoder:
        return decoder_of_run(dataset, device)

    decoder = load() if config.evaluation.every_steps else conveniences.together("loading the decoder", load)
    return None if decoder is None else sampler_of_run(config, dataset, decoder, device)
