"""A model and all that turns noise into its images: of a checkpoint, or of a run that goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.autoencoder import Autoencoder, load_autoencoder, to_uint8
from dit_scale.checkpoint import Checkpoint, weights_of
from dit_scale.checkpoint.averages import EMA
from dit_scale.classes import ClassNames
from dit_scale.config import Config, config_from
from dit_scale.diffusion import Objective
from dit_scale.diffusion.solvers import OnStep
from dit_scale.draws import Stream
from dit_scale.errors import InputError, few
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.parameters import DTYPES
from dit_scale.recipe import model_of, objective_of
from dit_scale.sampling.drawing import SamplingSettings, sample_latents
from dit_scale.sampling.other import check_guide, guide_network, opened, origin_of
from dit_scale.weights import load_trained

AUTOENCODER_FOLDER = "autoencoder"
"""Where a run folder keeps what decoding needs."""


@dataclass(frozen=True)
class Sampler:
    """A model, its objective and its decoder, on one device; image ``i`` depends on (seed, i) and its label alone."""

    config: Config
    objective: Objective
    latents: LatentSpec
    class_names: ClassNames
    """Of what may be drawn."""
    autoencoder: Autoencoder
    device: str
    model: DiT
    """Without its weights, on no device, until ``with_weights``."""
    kernels: str = "auto"
    """As ``engine.kernels``."""
    origin: dict[str, object] = field(default_factory=dict)
    """Whose weights they are, for a protocol."""
    others: dict[str, DiT] = field(default_factory=dict)
    """Networks that guide it, by the paths of their runs: each is read when it is first needed."""

    @classmethod
    def of(
        cls,
        config: Config,
        latents: LatentSpec,
        class_names: ClassNames,
        autoencoder: Autoencoder,
        device: str,
        kernels: str,
    ) -> "Sampler":
        """Return all but the weights, which is enough to check settings."""
        with torch.device("meta"):
            model = model_of(config, latents, len(class_names))
        objective = objective_of(config.diffusion, model)
        choices = model.condition.choices(class_names)
        return cls(config, objective, latents, choices, autoencoder, device, model, kernels)

    def with_weights(
        self, weights: Mapping[str, Tensor], source: str, origin: dict[str, object], precision: str = "fp32"
    ) -> "Sampler":
        """Return one that draws; raises InputError naming ``source`` where the weights are another model's."""
        model = model_of(self.config, self.latents, self.model.num_classes, self.kernels)
        model.to(self.device, DTYPES[precision]).eval()
        load_trained(model, weights, source)
        return replace(self, model=model, origin=origin | {"precision": precision}, others={})

    def check(self, settings: SamplingSettings, section: str = "") -> None:
        """Raise InputError where settings (of a configuration's section) do not fit, before anything is drawn."""
        try:
            if settings.guiding_path is not None:
                check_guide(settings.guiding_path, self.config, self.latents, self.class_names)
            settings.check(self.objective, self.model)
        except InputError as error:
            raise InputError(f"{section}: {error}" if section else str(error)) from error

    def images(self, labels: Sequence[int], indices: Sequence[int], settings: SamplingSettings) -> np.ndarray:
        """Return images, uint8 [N, S, S, 3]."""
        return self.decode(self._latents(labels, indices, settings))

    def frames(
        self, labels: Sequence[int], indices: Sequence[int], settings: SamplingSettings, count: int
    ) -> list[tuple[str, np.ndarray]]:
        """Return ``count`` pictures, uint8 [N, S, S, 3], of the latent on its way, each with the steps done."""
        frames: list[tuple[str, np.ndarray]] = []

        def keep(done: int, total: int, latent: Tensor) -> None:
            if done * count // total > (done - 1) * count // total:
                frames.append((f"{done}/{total}", self.decode(latent)))

        self._latents(labels, indices, settings, keep)
        return frames

    @torch.no_grad()
    def decode(self, latent: Tensor) -> np.ndarray:
        """Turn final latents [N, C, H, W] into images, uint8 [N, S, S, 3]."""
        images = to_uint8(self.autoencoder.decode(self.latents.denormalise(latent)))
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def described(self) -> dict[str, object]:
        """Return whose images they are, for a protocol."""
        compiled = {"compiled": True} if self.model.is_compiled else {}
        kernels = {} if self.model.has_kernels else {"kernels": "off"}
        return self.origin | compiled | kernels | {"autoencoder": self.autoencoder.identity}

    def classes_asked_for(self, numbers_or_names: Sequence[str], only_names: Sequence[str] = ()) -> list[int]:
        """Return the labels that a user asks for; raises InputError where one is unknown, or there are no classes."""
        try:
            return self.class_names.asked_for(numbers_or_names, only_names)
        except InputError as error:
            if self.config.model.condition != "none":
                raise
            raise InputError(
                f"classes {few(map(repr, [*numbers_or_names, *only_names]))} are asked for, and the model was trained "
                f"without (model.condition=none); leave --classes and --class out"
            ) from error

    def settings_described(self, settings: SamplingSettings) -> dict[str, object]:
        """Return all that others need to draw the same with these weights, for a protocol."""
        path = settings.guiding_path
        guide = {} if path is None else {"guide_by": origin_of(opened(path), EMA)}
        return settings.described(self.objective) | guide

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
            self.model.condition.values(torch.tensor(labels, device=self.device)),
            torch.tensor(indices, device=self.device),
            settings,
            on_step,
            None if settings.guiding_path is None else self._other(settings.guiding_path),
        )

    def _other(self, path: str) -> DiT:
        """Return the EMA of the run, or checkpoint, at a path: on the same device, in the same precision."""
        if path not in self.others:
            other = guide_network(path, self.kernels)
            other.to(self.device, next(self.model.parameters()).dtype).eval()
            if self.model.is_compiled:
                other.compile_blocks()
            self.others[path] = other
        return self.others[path]


def sampler_of(
    checkpoint: Checkpoint,
    device: str,
    weights: str = "ema",
    decoder: str | None = None,
    precision: str = "fp32",
    compile_blocks: bool = False,
    kernels: str = "auto",
) -> Sampler:
    """Return what draws with a checkpoint's weights; raises InputError for a decoder of other latents."""
    description = checkpoint.description
    data, config = description.data, config_from(Config, description.config)
    latents = LatentSpec.from_json(data["latent"])
    autoencoder = load_autoencoder(
        decoder or data["autoencoder"],
        folder=checkpoint.folder.parent.parent / AUTOENCODER_FOLDER,
        device=device,
    )
    if autoencoder.channels != latents.channels:
        raise InputError(
            f"decoder '{decoder}' reads {autoencoder.channels} channels, but the model makes latents of "
            f"{latents.channels}; give a decoder that belongs to the encoder that they were made with"
        )
    origin = origin_of(checkpoint, weights)
    sampler = Sampler.of(config, latents, ClassNames(data["class_names"]), autoencoder, device, kernels)
    sampler = sampler.with_weights(weights_of(checkpoint, weights), str(checkpoint.folder), origin, precision)
    if compile_blocks:
        sampler.model.compile_blocks()
    return sampler
