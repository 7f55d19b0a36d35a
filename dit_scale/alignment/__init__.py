"""Frozen encoders for representation alignment (REPA, arXiv 2410.06940): crops in, one feature a token out."""

from dit_scale.alignment.encoders import KINDS, Encoder, digest_of, resample_positions
from dit_scale.alignment.sources import EFFICIENTNET, Loaded, Outline, outline_of

__all__ = [
    "EFFICIENTNET",
    "KINDS",
    "Encoder",
    "Loaded",
    "Outline",
    "digest_of",
    "outline_of",
    "resample_positions",
]
