"""What every autoencoder can do."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from dit_scale.errors import InputError

Identity = dict[str, Any]
"""``kind, name, revision`` and ``sha256`` of the weights, as plain JSON values."""

NO_AUTOENCODER: Identity = {"kind": "none", "name": "none", "revision": None, "sha256": None}
"""Of a model that was imported without one."""


def from_uint8(images: Tensor) -> Tensor:
    """Turn uint8 images [N, 3, S, S] into float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Turn images [N, 3, S, S] in [-1, 1] into uint8 as DiT's published sampler does; inverts ``from_uint8``."""
    return (127.5 * images.float() + 128.0).clamp(0.0, 255.0).to(torch.uint8)


class Autoencoder(ABC):
    """Encodes images to moments and decodes raw latents, both [N, C, h, w] with sides ``S / downsampling``."""

    channels: int
    downsampling: int
    """Pixels of an image's side for one latent pixel."""
    scale: tuple[float, ...]
    """The model's own latent scale; a manifest may hold another."""
    shift: tuple[float, ...]
    identity: Identity

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode images [N, 3, S, S] in [-1, 1] to moments [N, 2C, h, w], float32."""

    @abstractmethod
    def decode(self, raw: Tensor) -> Tensor:
        """Decode raw latents [N, C, h, w] to images [N, 3, S, S], about in [-1, 1], float32."""

    @abstractmethod
    def to(self, device: str) -> Self:
        """Move the weights to a device; return self."""

    def compile(self) -> None:  # noqa: B027 (most have nothing to compile)
        """Have encoding compiled, where that is worth it."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, on the CPU."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what else it takes to build this autoencoder, as JSON values."""

    def latent_size(self, image_size: int) -> int:
        """Return the side of the latent of an image; raises InputError where it is not a whole number."""
        if image_size % self.downsampling:
            raise InputError(
                f"image_size={image_size} is not divisible by {self.downsampling}, the downsampling of autoencoder "
                f"'{self.identity['name']}'; give a multiple of it"
            )
        return image_size // self.downsampling

    def identify(self, kind: str, name: str, revision: str | None) -> Identity:
        """Return what tells this autoencoder from others."""
        return {"kind": kind, "name": name, "revision": revision, "sha256": _digest(self.tensors())}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, whatever file format keeps them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
