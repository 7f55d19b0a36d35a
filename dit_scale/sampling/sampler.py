"""A trained model and all that turns noise into its images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.autoencoder import load_autoencoder
from dit_scale.checkpoint import open_whole, weights_of
from dit_scale.checkpoint.post_hoc import weights_digest
from dit_scale.classes import ClassNames
from dit_scale.config import Config, config_from
from dit_scale.diffusion.solvers import OnStep
from dit_scale.draws import Stream
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.recipe import model_of, objective_of
from dit_scale.sampling.drawing import SamplingSettings, decode, sample_latents
from dit_scale.weights import load_trained

AUTOENCODER_FOLDER = "autoencoder"
"""Where a run folder keeps what decoding needs."""


class Sampler:
    """A checkpoint's model, its objective and its decoder, on one device."""

    def __init__(
        self,
        path: Path,
        device: str,
        weights: str = "ema",
        decoder: str | None = None,
        precision: str = "fp32",
        compile_blocks: bool = False,
    ):
        checkpoint = open_whole(path)
        data = checkpoint.description.data
        config = config_from(Config, checkpoint.description.config)
        self.checkpoint, self.device, self.weights, self.precision = checkpoint, device, weights, precision
        class_names = ClassNames(data["class_names"])
        self.latents = LatentSpec.from_json(data["latent"])
        self.objective = objective_of(config.diffusion, config.model.learn_sigma)
        self.model = model_of(config.model, self.latents, len(class_names))
        self.class_names = self.model.condition.choices(class_names)
        load_trained(self.model, weights_of(checkpoint, weights), str(checkpoint.folder))
        self.model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).eval()
        if compile_blocks:
            self.model.compile_blocks()
        run_dir = checkpoint.folder.parent.parent
        self.autoencoder = load_autoencoder(
            decoder or data["autoencoder"], folder=run_dir / AUTOENCODER_FOLDER, device=device
        )
        if self.autoencoder.channels != self.latents.channels:
            raise InputError(
                f"decoder '{decoder}' reads {self.autoencoder.channels} channels, but the model makes latents of "
                f"{self.latents.channels}; give a decoder that belongs to the encoder that they were made with"
            )

    def check(self, settings: SamplingSettings) -> None:
        """Raise InputError where settings do not fit the model, before anything is drawn."""
        model = self.model
        settings.check(self.objective, self.latents.channels, model.out_channels, model.condition.has_null)

    def images(self, labels: Sequence[int], indices: Sequence[int], settings: SamplingSettings) -> np.ndarray:
        """Return images, uint8 [N, S, S, 3]."""
        return decode(self._latents(labels, indices, settings), self.latents, self.autoencoder)

    def frames(
        self, labels: Sequence[int], indices: Sequence[int], settings: SamplingSettings, count: int
    ) -> list[tuple[str, np.ndarray]]:
        """Return ``count`` pictures, uint8 [N, S, S, 3], of the latent on its way, each with the steps done."""
        frames: list[tuple[str, np.ndarray]] = []

        def keep(done: int, total: int, latent: Tensor) -> None:
            if done * count // total > (done - 1) * count // total:
                frames.append((f"{done}/{total}", decode(latent, self.latents, self.autoencoder)))

        self._latents(labels, indices, settings, keep)
        return frames

    def described(self) -> dict[str, object]:
        """Return whose images they are, for a protocol."""
        return {
            "step": self.checkpoint.description.position.step,
            "weights": self.weights,
            "weights_digest": weights_digest(self.checkpoint, self.weights),
            "precision": self.precision,
            **({"compiled": True} if self.model.is_compiled else {}),
            "autoencoder": self.autoencoder.identity,
        }

    def labels_of(self, chosen: Sequence[int], count: int, seed: int | None = None) -> list[int]:
        """Return the label of each image: of the chosen labels, none means all.

        In turn, so that they come out even; or, where ``seed`` is given, drawn for each image.
        """
        chosen = chosen or range(len(self.class_names))
        if seed is None:
            return [chosen[index % len(chosen)] for index in range(count)]
        drawn = draws.uniform(seed, Stream.LABEL, torch.arange(count)) * len(chosen)
        return [chosen[place] for place in drawn.long().tolist()]

    def _latents(
        self, labels: Sequence[int], indices: Sequence[int], settings: SamplingSettings, on_step: OnStep | None = None
    ) -> Tensor:
        return sample_latents(
            self.model,
            self.objective,
            self.latents,
            torch.tensor(labels, device=self.device),
            torch.tensor(indices, device=self.device),
            settings,
            on_step,
        )
