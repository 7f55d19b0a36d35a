"""A linear codec that is fitted on the images themselves, in seconds, where no other autoencoder is at hand."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_scale.autoencoder.base import Autoencoder, fixed_threads
from dit_scale.errors import InputError
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE


class PCACodec(Autoencoder):
    """A linear patch codec: a patch of P x P x 3 numbers to its first principal components, without variance.

    It computes in float64, so that what it stores in half precision does not depend on batches or threads.
    """

    KIND = "pca"

    def __init__(self, components: Tensor, mean: Tensor, patch_size: int, scale: float):
        self._components, self._mean = components, mean  # [C, 3PP] orthonormal rows, [3PP]
        self.channels = len(components)
        self.downsampling = patch_size
        self.scale, self.shift = (scale,), (0.0,)
        self.identity = self.identify(self.KIND, "pca", None)

    @classmethod
    def fit(cls, images: Iterable[Tensor], patch_size: int, channels: int) -> "PCACodec":
        """Fit the codec to batches of uint8 images [N, 3, S, S].

        Sums of products of pixels are whole numbers, exact in float64, so their batches and order do not matter.
        """
        width = 3 * patch_size**2
        if channels > width:
            raise InputError(f"autoencoder.pca_channels={channels} is above {width}, the numbers in a patch; give less")
        count, total, products = 0, torch.zeros(width).double(), torch.zeros(width, width).double()
        for batch in images:
            patches = F.pixel_unshuffle(batch.double(), patch_size).movedim(1, -1).flatten(0, -2)  # [N h w, 3PP]
            count += len(patches)
            total += patches.sum(0)
            products += patches.T @ patches
        mean = total / max(1, count)
        variances, vectors = _eigh(products / max(1, count) - mean[:, None] * mean)
        components = vectors.T.flip(0)[:channels]
        # An eigenvector's sign is arbitrary: let it lean to plus, its first entries counting most.
        lean = components @ (1.0 / torch.arange(1, width + 1).double())
        components = torch.where(lean[:, None] < 0, -components, components).contiguous()
        rms = variances.flip(0)[:channels].clamp(min=0.0).mean().sqrt().item() / 127.5
        if rms < 1e-6:
            raise InputError(f"the PCA codec finds one and the same colour in all {count} patches; give other images")
        return cls(components, mean / 127.5 - 1.0, patch_size, 1.0 / rms)

    def encode(self, images: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(images.double(), self.downsampling).movedim(1, -1)  # [N, h, w, 3PP]
        mean = ((patches - self._mean) @ self._components.T).movedim(-1, 1).float()  # [N, C, h, w]
        return torch.cat((mean, torch.full_like(mean, NO_VARIANCE_LOG_VARIANCE)), dim=1)  # [N, 2C, h, w]

    def decode(self, raw: Tensor) -> Tensor:
        patches = raw.double().movedim(1, -1) @ self._components + self._mean  # [N, h, w, 3PP]
        return F.pixel_shuffle(patches.movedim(-1, 1), self.downsampling).float()  # [N, 3, S, S]

    def to(self, device: str) -> "PCACodec":
        self._components, self._mean = self._components.to(device), self._mean.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {"components": self._components.cpu(), "mean": self._mean.cpu()}

    def settings(self) -> dict[str, Any]:
        return {"patch_size": self.downsampling, "scale": self.scale[0]}


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors, the same whatever the caller's threads."""
    with fixed_threads(1):
        return torch.linalg.eigh(matrix)
