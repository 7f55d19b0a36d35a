"""What the EMA draws while a run goes on: for preview grids, and to be judged."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dit_scale.autoencoder import Autoencoder, load_autoencoder
from dit_scale.conditioning import build_condition
from dit_scale.config import Config
from dit_scale.data.loader import LatentDataset
from dit_scale.diffusion import Objective
from dit_scale.errors import InputError
from dit_scale.models import DiT
from dit_scale.recipe import model_of
from dit_scale.sampling import SamplingSettings, decode, sample_latents
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.training.data import autoencoder_folder
from dit_scale.training.ema import ShardedEMA
from dit_scale.weights import load_trained

T = TypeVar("T")


class EMAImages:
    """Draws images with the average; image ``i`` depends on (seed, i), its label, the settings and the weights."""

    def __init__(self, config: Config, objective: Objective, dataset: LatentDataset, device: str):
        self.objective, self.latents, self.device = objective, dataset.manifest.latents, device
        model, self._num_classes = config.model, len(dataset.class_names)
        self._condition = build_condition(model.condition, self._num_classes, model.label_dropout > 0)
        self.class_names = self._condition.choices(dataset.class_names)
        self.autoencoder: Autoencoder = load_autoencoder(
            dataset.manifest.autoencoder, folder=autoencoder_folder(dataset), device=device
        )
        self._model = config.model

    def check(self, settings: SamplingSettings, section: str) -> None:
        """Raise InputError now rather than at the first image where settings of a configuration section do not fit."""
        model, channels = self._model, self.latents.channels
        try:
            settings.check(self.objective, channels, (1 + model.learn_sigma) * channels, self._condition.has_null)
        except InputError as error:
            raise InputError(f"{section}: {error}") from error

    def with_average(
        self, ema: ShardedEMA, conveniences: Conveniences, what: str, step: int, work: Callable[[DiT], T]
    ) -> T | None:
        """Return what ``work`` makes of a model with the whole average, or None on all ranks where it fails on any.

        Collective; ``work`` itself must not be.
        """
        parts = conveniences.together(what, lambda: ema.laid_out(self.device), step)
        if parts is None:
            return None
        weights = ema.completed(parts)
        return conveniences.together(what, lambda: work(self._model_of(weights)), step)

    def _model_of(self, weights: dict[str, Tensor]) -> DiT:
        model = model_of(self._model, self.latents, self._num_classes).to(self.device).eval()
        load_trained(model, weights, "ema of this run")
        return model

    def draw(self, model: DiT, labels: Sequence[int], indices: Sequence[int], settings: SamplingSettings) -> np.ndarray:
        """Return images, uint8 [N, S, S, 3]."""
        latent = sample_latents(
            model,
            self.objective,
            self.latents,
            torch.tensor(labels, device=self.device),
            torch.tensor(indices, device=self.device),
            settings,
        )
        return decode(latent, self.latents, self.autoencoder)
