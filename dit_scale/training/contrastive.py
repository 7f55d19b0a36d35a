"""Contrastive flow matching (arXiv 2506.05350): each image's velocity is pushed from that of another image."""

from dataclasses import dataclass
from typing import ClassVar

from dit_scale.diffusion import FlowMatching, Term, Terms
from dit_scale.diffusion.losses import sample_mean
from dit_scale.training.loss import Pass


@dataclass(frozen=True)
class Contrast:
    """Minus ``weight`` times the squared distance of a predicted velocity to the true one of another image.

    The other image is the neighbour in the stream, 2k and 2k + 1 for each other, with its own latent and noise: the
    stream's order is random, so it is a random image, and it is the same one on any number of ranks, as no micro batch
    parts the two (``BatchPlan.images_together``).
    """

    objective: FlowMatching
    weight: float

    hidden: ClassVar[tuple[int, ...]] = ()

    def terms(self, seen: Pass) -> Terms:
        """Return ``contrastive``, the squared distance of each image."""
        latent, noise = seen.latent.float(), seen.noise.float()
        noised = self.objective.noised(latent, noise, seen.time)
        velocity = self.objective.velocity(lambda *_: seen.output, noised, seen.time)
        others = (noise - latent).unflatten(0, (-1, 2)).flip(1).flatten(0, 1)  # [N, C, S, S]
        return {"contrastive": Term(sample_mean((velocity - others) ** 2), -self.weight)}  # [N]
