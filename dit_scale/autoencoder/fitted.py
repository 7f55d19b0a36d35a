"""A small convolutional codec, fitted on the images themselves in minutes where no other autoencoder is at hand."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dit_scale.autoencoder.base import Autoencoder, fixed_threads, from_uint8, to_uint8
from dit_scale.autoencoder.fitting import BATCH_IMAGES, fit_network
from dit_scale.autoencoder.patches import PatchNetwork
from dit_scale.autoencoder.pca import PCACodec
from dit_scale.errors import InputError
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE

_WIDTH, _SEED = 192, 0
_DEPTHS = {"encoder_depth": 2, "decoder_depth": 3}
_MEASURED_IMAGES, _MEASURED_BATCH = 512, 32


class FittedCodec(Autoencoder):
    """Principal components of patches, and what small networks add to them when encoding and decoding.

    Its latents have no variance. It computes in fp32: the same bytes take batches of one size and one thread, which is
    how images are encoded.
    """

    KIND = "fitted"

    def __init__(self, network: PatchNetwork, sizes: dict[str, int], scale: float, psnr: float):
        self._network, self._sizes = network.eval().requires_grad_(False), sizes
        self.channels, self.downsampling = network.channels, network.patch_size
        self.scale, self.shift, self.psnr = (scale,), (0.0,), psnr
        self.identity = self.identify(self.KIND, self.KIND, None)

    @classmethod
    def fit(
        cls, images: Iterable[Tensor], patch_size: int, channels: int, steps: int, width: int = _WIDTH
    ) -> "FittedCodec":
        """Fit the codec to batches of uint8 images [N, 3, S, S], all held in memory at once.

        The same images in the same order give the same weights on the same kind of processor, whatever the number of
        cores, the caller's threads and its random state. Raises InputError for fewer than BATCH_IMAGES images.
        """
        parts = list(images)
        if (count := sum(map(len, parts))) < BATCH_IMAGES:
            raise InputError(
                f"autoencoder.name={cls.KIND} is fitted on {BATCH_IMAGES} images at least, and {count} can be read; "
                f"give more images, a larger autoencoder.fit_images, or autoencoder.name=pca"
            )
        pixels, generator = torch.cat(parts), torch.Generator().manual_seed(_SEED)
        sizes = {"patch_size": patch_size, "channels": channels, "width": width} | _DEPTHS
        with fixed_threads(1):
            network = PatchNetwork(**sizes).begin(*_linear_codec(parts, patch_size, channels), generator)
            fit_network(network, pixels, steps, generator)
            return cls(network, sizes, *_scale_and_psnr(network, pixels))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> "FittedCodec":
        """Build the codec again from its ``tensors()`` and ``settings()``."""
        network = PatchNetwork(**settings["sizes"])
        network.load_state_dict(dict(tensors))
        return cls(network, **settings)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        mean = self._network.encode(images.float())  # [N, C, h, w]
        return torch.cat((mean, torch.full_like(mean, NO_VARIANCE_LOG_VARIANCE)), dim=1)  # [N, 2C, h, w]

    @torch.no_grad()
    def decode(self, raw: Tensor) -> Tensor:
        return self._network.decode(raw.float())  # [N, 3, S, S]

    def to(self, device: str) -> "FittedCodec":
        self._network.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.cpu().contiguous() for name, value in self._network.state_dict().items()}

    def settings(self) -> dict[str, Any]:
        return {"sizes": self._sizes, "scale": self.scale[0], "psnr": self.psnr}


def _linear_codec(parts: list[Tensor], patch_size: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return all principal components, scaled to latents of rms 1, their mean, and the deviation of what each gives."""
    linear = PCACodec.fit(parts, patch_size, 3 * patch_size**2)
    squares = torch.zeros(linear.channels).double()
    for part in parts:
        squares += linear.encode(from_uint8(part)).chunk(2, dim=1)[0].double().square().mean((0, 2, 3)) * len(part)
    squares /= sum(map(len, parts))
    scale = squares[:channels].mean() ** -0.5
    tensors = linear.tensors()
    return tensors["components"] * scale, tensors["mean"], squares.sqrt() * scale


@torch.no_grad()
def _scale_and_psnr(network: PatchNetwork, images: Tensor) -> tuple[float, float]:
    """Return what scales latents to rms 1, and the PSNR in dB of what they decode to, on images spread evenly."""
    chosen = images[:: -(-len(images) // _MEASURED_IMAGES)]
    power = error = 0.0
    for batch in chosen.split(_MEASURED_BATCH):
        latents = network.encode(from_uint8(batch))
        power += latents.double().square().mean().item() * len(batch) / len(chosen)
        difference = to_uint8(network.decode(latents)).double() - batch
        error += difference.square().mean().item() * len(batch) / len(chosen)
    return power**-0.5, round(10.0 * math.log10(255.0**2 / max(error, 1e-6)), 2)
