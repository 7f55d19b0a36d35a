"""Frozen image encoders that a network's tokens are aligned with: which there are, how each is fed and read.

N crops of S x S pixels become features of G x G places, one for each of the network's T = G² tokens, of width E.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from dit_scale import classifier

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def _nothing(num_images: int, num_patches: int, device: torch.device) -> dict[str, Any]:
    return {}


def _in_order(num_images: int, num_patches: int, device: torch.device) -> dict[str, Any]:
    """Return the order in which a masked autoencoder keeps its patches: as they come."""
    return {"noise": torch.arange(num_patches, device=device).expand(num_images, -1)}


@dataclass(frozen=True)
class Kind:
    """A family of vision transformers; its features are the patches' tokens after its last norm, with its weights."""

    network: str
    """Its class in transformers."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and deviation of red, green and blue in [0, 1]."""
    class_tokens: int
    """Before the patches, with a row of the position table each; register tokens follow them and have none."""
    positions: str | None
    """The position table, as it is called in its state; None where positions are computed."""
    settings: tuple[tuple[str, Any], ...] = ()
    """What its own configuration must say here."""
    also: Callable[[int, int, torch.device], dict[str, Any]] = _nothing
    """What it is given beside images."""


_DINO_POSITIONS = "embeddings.position_embeddings"
_SIGLIP_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_SIGLIP = Kind("SiglipVisionModel", _HALF, 0, _SIGLIP_POSITIONS, (("vision_use_head", False),))
KINDS = {
    "dinov2": Kind("Dinov2Model", _IMAGENET, 1, _DINO_POSITIONS),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", _IMAGENET, 1, _DINO_POSITIONS),
    "dinov3_vit": Kind("DINOv3ViTModel", _IMAGENET, 1, None),
    "siglip": _SIGLIP,  # SigLIP 2 of fixed size, too
    "siglip_vision_model": _SIGLIP,
    "vit_mae": Kind("ViTMAEModel", _IMAGENET, 1, _DINO_POSITIONS, (("mask_ratio", 0.0),), _in_order),
}
"""By the ``model_type`` of their config.json."""


class Encoder(nn.Module, ABC):
    """A frozen encoder for a network with a grid of G x G tokens."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, grid_side: int, patch_size: int, normalisation: Any):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.grid_side, self.patch_size = grid_side, patch_size
        for name, values in zip(("mean", "deviation"), normalisation, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.network.parameters()).dtype

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Return the features [N, T, E] of uint8 crops [N, 3, S, S].

        As REPA prepares them: normalised, then resized to the encoder's patches, bicubic and without antialiasing.
        """
        pixels = (crops.float() / 255 - self.mean) / self.deviation
        side = self.grid_side * self.patch_size
        if crops.shape[-1] != side:
            pixels = F.interpolate(pixels, (side, side), mode="bicubic")
        return self.features(pixels.to(self.dtype))

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """Return the features [N, T, E] of prepared images [N, 3, G * P, G * P]."""

    def place(self, device: torch.device | str, dtype: torch.dtype) -> "Encoder":
        """Move it to a device, to compute there in a dtype; images are prepared in fp32."""
        self.to(device)
        self.network.to(dtype)
        return self


class VisionTransformer(Encoder):
    """An encoder of transformers."""

    def __init__(self, network: Any, grid_side: int, kind: Kind):
        config = network.config
        super().__init__(network, grid_side, config.patch_size, kind.normalisation)
        self._kind = kind
        self._prefix_tokens = kind.class_tokens + getattr(config, "num_register_tokens", 0)

    def features(self, pixels: Tensor) -> Tensor:
        also = self._kind.also(len(pixels), self.grid_side**2, pixels.device)
        tokens: Tensor = self.network(pixel_values=pixels, **also).last_hidden_state
        return tokens[:, self._prefix_tokens :]  # [N, T, E]


class Classifier(Encoder):
    """The bundled classifier; its last features before the classes, at each place."""

    def __init__(self, network: Any, grid_side: int):
        values = [tuple(value / 255 for _ in range(3)) for value in (classifier.MEAN, classifier.DEVIATION)]
        super().__init__(network, grid_side, classifier.STRIDE, values)

    def features(self, pixels: Tensor) -> Tensor:
        network: Any = self.network
        return network.extract_features(pixels).flatten(2).transpose(1, 2)  # [N, T, E]


def resample_positions(table: Tensor, class_tokens: int, side: int) -> Tensor:
    """Bring a position table [..., K + S², D] to a grid of ``side``² places: bicubic with antialiasing, in fp32.

    As timm does, and with it REPA. The rows of class tokens stay as they are.
    """
    first, places = table[..., :class_tokens, :], table[..., class_tokens:, :]
    before = math.isqrt(places.shape[-2])
    if before == side:
        return table
    grid = places.float().reshape(1, before, before, -1).permute(0, 3, 1, 2)  # [1, D, S, S]
    grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)  # [1, D, side, side]
    places = grid.flatten(2).transpose(1, 2).reshape(*table.shape[:-2], side**2, -1)
    return torch.cat((first, places.to(table.dtype)), dim=-2)


def digest_of(network: nn.Module) -> str:
    """Return a digest of weights by name that does not depend on the files that they came in."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
