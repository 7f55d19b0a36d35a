"""The frozen autoencoder: images to moments, raw latents to images, and what identifies it."""

from dit_scale.autoencoder.base import NO_AUTOENCODER, Autoencoder, Identity, from_uint8, to_uint8
from dit_scale.autoencoder.pca import PCACodec
from dit_scale.autoencoder.store import FILE_NAME, copy_decoder, load_autoencoder, save_autoencoder

__all__ = [
    "FILE_NAME",
    "NO_AUTOENCODER",
    "Autoencoder",
    "Identity",
    "PCACodec",
    "copy_decoder",
    "from_uint8",
    "load_autoencoder",
    "save_autoencoder",
    "to_uint8",
]
