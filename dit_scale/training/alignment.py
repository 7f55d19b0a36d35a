"""Representation alignment: a block's tokens drawn to frozen encoders' features (REPA, arXiv 2410.06940, eq. 8)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_scale.alignment import Encoder, Loaded, digest_of, outline_of
from dit_scale.config import Config
from dit_scale.diffusion import Term, Terms
from dit_scale.errors import InputError
from dit_scale.parameters import DTYPES
from dit_scale.training.loss import Pass

_EPSILON = 1e-6


@dataclass(frozen=True)
class Alignment:
    """Minus the cosine between what projectors make of a block's tokens and encoders' features, averaged over both."""

    encoders: Sequence[Encoder]
    weight: float
    spatial_norm: float

    @property
    def hidden(self) -> tuple[str, ...]:
        """The projectors."""
        return tuple(f"projectors.{index}" for index in range(len(self.encoders)))

    def terms(self, seen: Pass) -> Terms:
        """Return ``alignment``, [N]."""
        assert seen.crops is not None, "the loader gives crops where alignment is on"
        losses = [
            -F.cosine_similarity(seen.hidden[name].float(), self._target(encoder, seen.crops), dim=-1).mean(dim=1)
            for name, encoder in zip(self.hidden, self.encoders, strict=True)
        ]
        return {"alignment": Term(torch.stack(losses).mean(dim=0), self.weight)}  # [N]

    def _target(self, encoder: Encoder, crops: Tensor) -> Tensor:
        """Return features [N, T, E] in fp32, normalised over an image's places where that is asked for."""
        features = encoder(crops).float()
        return normalised_over_places(features, self.spatial_norm) if self.spatial_norm else features


def normalised_over_places(features: Tensor, part: float) -> Tensor:
    """Take a part of the mean over places from features [N, T, E], and divide by the deviation over places (iREPA)."""
    centred = features - part * features.mean(dim=1, keepdim=True)
    return centred / (centred.std(dim=1, keepdim=True) + _EPSILON)


def load_encoders(config: Config) -> tuple[Config, list[Loaded]]:
    """Load the encoders, on the CPU; return the configuration with their digests, too.

    Raises InputError where one cannot be had, or has other weights than the configuration says.
    """
    alignment = config.alignment
    loaded = [outline_of(name).load() for name in alignment.encoders]
    digests = tuple(digest_of(one.network) for one in loaded)
    for name, found, expected in zip(alignment.encoders, digests, alignment.encoder_digests, strict=False):
        if found != expected:
            raise InputError(
                f"encoder '{name}' has weights of the digest {found}, and alignment.encoder_digests says {expected}; "
                f"give the encoder of that digest, or leave alignment.encoder_digests out"
            )
    return replace(config, alignment=replace(alignment, encoder_digests=digests)), loaded


def alignment_of(config: Config, loaded: Sequence[Loaded], grid_side: int, device: str) -> Alignment | None:
    """Return the loss, encoders ready on a device for a network with so many tokens a side; None where it is off."""
    dtype, alignment = DTYPES[config.engine.precision], config.alignment
    encoders = [one.fit(grid_side).place(device, dtype) for one in loaded]
    return Alignment(encoders, alignment.weight, alignment.spatial_norm) if encoders else None
