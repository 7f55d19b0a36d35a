"""The autoencoders that are fitted on the images themselves, where no other is at hand: a table of all of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit_scale.autoencoder.base import Autoencoder
from dit_scale.autoencoder.fitted import FittedCodec
from dit_scale.autoencoder.pca import PCACodec
from dit_scale.config import AutoencoderConfig


@dataclass(frozen=True)
class Embedded:
    """How an autoencoder of this kind comes to be."""

    fit: Callable[[Iterable[Tensor], AutoencoderConfig], Autoencoder]
    """From batches of uint8 images [N, 3, S, S]."""
    fit_images: Callable[[AutoencoderConfig], int]
    """How many images it is fitted on."""
    restore: Callable[[Mapping[str, Tensor], dict[str, Any]], Autoencoder]
    """From what its file holds: ``tensors()`` and ``settings()``."""


EMBEDDED = {
    PCACodec.KIND: Embedded(
        lambda images, settings: PCACodec.fit(images, settings.pca_patch_size, settings.pca_channels),
        lambda settings: settings.pca_fit_images,
        lambda tensors, settings: PCACodec(tensors["components"], tensors["mean"], **settings),
    ),
    FittedCodec.KIND: Embedded(
        lambda images, settings: FittedCodec.fit(
            images, settings.fit_patch_size, settings.fit_channels, settings.fit_steps
        ),
        lambda settings: settings.fit_images,
        lambda tensors, settings: FittedCodec.restore(tensors, settings),
    ),
}
"""By the name that ``autoencoder.name`` gives them, which is the kind of their identity."""
