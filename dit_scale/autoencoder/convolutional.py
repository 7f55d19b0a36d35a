"""The convolutional autoencoders of diffusers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dit_scale.autoencoder.base import Autoencoder
from dit_scale.autoencoder.hub import not_cached, refuse_missing_folder, why_out_of_reach
from dit_scale.errors import InputError
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE
from dit_scale.weights import from_diffusers, from_pretrained, pretrained


class ConvAutoencoder(Autoencoder):
    """A convolutional autoencoder of diffusers: AutoencoderKL, or AutoencoderTiny, which has no variance."""

    KINDS = ("AutoencoderKL", "AutoencoderTiny")

    def __init__(self, model: Any, name: str, revision: str | None, precision: Literal["fp32", "bf16"] = "fp32"):
        self._model = model.float().eval().requires_grad_(False)
        self._precision = precision
        self._is_tiny = type(model).__name__ == "AutoencoderTiny"
        config = model.config
        widths = config.encoder_block_out_channels if self._is_tiny else config.block_out_channels
        self.channels = config.latent_channels
        self.downsampling = 2 ** (len(widths) - 1)
        self.scale, self.shift = _own_normalisation(config, name)
        self.identity = self.identify(type(model).__name__, name, revision)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        with self._arithmetic(images.device):
            if not self._is_tiny:
                return self._model.encode(images).latent_dist.parameters.float()  # [N, 2C, h, w]
            mean = self._model.encode(images).latents.float()  # [N, C, h, w]
        return torch.cat((mean, torch.full_like(mean, NO_VARIANCE_LOG_VARIANCE)), dim=1)  # [N, 2C, h, w]

    @torch.no_grad()
    def decode(self, raw: Tensor) -> Tensor:
        with self._arithmetic(raw.device):
            return self._model.decode(raw.float()).sample.float()  # [N, 3, S, S]

    def to(self, device: str) -> "ConvAutoencoder":
        # NVIDIA's convolutions want channels last; on a CPU it would change the last bits and little else.
        layout = torch.channels_last if device.startswith("cuda") else torch.contiguous_format
        self._model.to(device=device, memory_format=layout)
        return self

    def compile(self) -> None:
        self._model.encoder.compile()

    def as_diffusers(self, scale: float) -> Any:
        """Return a copy of diffusers' model that names ``scale`` as its own."""
        copy = type(self._model).from_config(self.settings() | {"scaling_factor": scale})
        copy.load_state_dict(self._model.state_dict())
        return copy

    def _arithmetic(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.cpu().contiguous() for name, value in self._model.state_dict().items()}

    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in self._model.config.items() if not key.startswith("_")}


def load_convolutional(
    name: str, revision: str | None, precision: Literal["fp32", "bf16"], or_else: str = ""
) -> ConvAutoencoder:
    """Load an autoencoder by its hub name or local folder; raises InputError where it, or a weight, cannot be had.

    ``or_else`` is what the caller may take instead, for that sentence.
    """
    what = f"autoencoder '{name}'"
    refuse_missing_folder(name, or_else)
    away = None if Path(name).is_dir() else why_out_of_reach()
    with pretrained(
        what,
        f"give a hub name, the folder of a diffusers autoencoder, or a folder with autoencoder.safetensors{or_else}",
    ):
        try:
            config, _, commit = from_diffusers("AutoencoderKL").load_config(
                name,
                revision=revision,
                local_files_only=away is not None,
                return_unused_kwargs=True,
                return_commit_hash=True,
            )
        except OSError as error:
            if away is None:
                raise
            raise not_cached(name, revision, away, or_else) from error
    if not isinstance(config, dict):
        raise InputError(f"autoencoder '{name}' has a config.json that is not a JSON object; copy the folder again")
    model_class = model_class_of(config.get("_class_name"), name)
    fix = "copy the whole folder again, or let the hub's copy be downloaded again"
    options = {"revision": commit or revision, "local_files_only": away is not None}
    model = from_pretrained(model_class, name, what, fix, _is_unused, **options)
    # A folder is named without its path, so that the same weights encoded elsewhere give the same manifest.
    return ConvAutoencoder(model, Path(name).name if Path(name).is_dir() else name, commit, precision)


def _is_unused(model: Any, name: str) -> bool:
    """Whether a file may hold weights that its configuration turns off."""
    module = name.partition(".")[0]
    return module in ("quant_conv", "post_quant_conv") and not model.config.get(f"use_{module}", True)


def model_class_of(kind: str | None, where: str) -> Any:
    """Return the class of diffusers with this name, if it is one that can be used here."""
    if kind not in ConvAutoencoder.KINDS:
        raise InputError(f"autoencoder '{where}' is of class {kind}; give one of {', '.join(ConvAutoencoder.KINDS)}")
    return from_diffusers(kind)


def _own_normalisation(config: Mapping[str, Any], name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and shift from a diffusers config: one number each, or one a channel where it has statistics."""
    (factor,) = _numbers(config, "scaling_factor", name) or (1.0,)
    mean, std = _numbers(config, "latents_mean", name), _numbers(config, "latents_std", name)
    if mean is None or std is None:
        return (factor,), _numbers(config, "shift_factor", name) or (0.0,)
    return tuple(factor / number for number in std), mean


def _numbers(config: Mapping[str, Any], key: str, name: str) -> tuple[float, ...] | None:
    """Return a number or a list of numbers; raises InputError where it is neither, or no number to scale with."""
    value = config.get(key)
    is_list = key.startswith("latents_")
    values: list[Any] = list(value) if is_list and isinstance(value, list | tuple) else [value]
    is_scale = key in ("scaling_factor", "latents_std")
    if value is None:
        return None
    for number in values:
        is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not is_number or (is_scale and float(number) <= 0):
            noun = f"{'numbers' if is_list else 'a number'}{' above 0' if is_scale else ''}"
            raise InputError(
                f"autoencoder '{name}' has {key}={json.dumps(value)} in its config.json, where {noun} belongs; correct "
                f"it there"
            )
    return tuple(map(float, values))
