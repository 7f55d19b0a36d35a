"""The loss of a network's second final layer, which guides at sampling in one pass a step (``guide_by=early``).

Internal guidance, Zhou et al., arXiv 2512.24176.
"""

from dataclasses import dataclass

from dit_scale.diffusion import Objective, Term, Terms
from dit_scale.training.loss import Hidden, Pass

_LAYER = "early_layer"


@dataclass(frozen=True)
class EarlyLoss:
    """The objective's squared error, of what the tokens of a block before the last predict."""

    objective: Objective
    weight: float
    hidden: tuple[Hidden, ...] = (_LAYER,)

    def terms(self, seen: Pass) -> Terms:
        """Return ``early``: what the objective calls ``mse``."""
        terms = self.objective.loss(lambda *_: seen.hidden[_LAYER], seen.latent, seen.noise, seen.time)
        return {"early": Term(terms["mse"].value, self.weight)}
