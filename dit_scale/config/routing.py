"""Token routing: which part of the tokens goes around which blocks, and for how long."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_scale.config.fields import Spell, When, number, unless, when
from dit_scale.errors import InputError


@dataclass(frozen=True)
class RoutingConfig:
    only_if: ClassVar[When] = unless("ratio", 0)

    ratio: float = number(0.0, at_least=0, below=1)
    """Part of each image's tokens that goes around the routed blocks in training; 0 disables routing."""
    from_block: int = number(3, at_least=1)
    """First routed block, counted from 1."""
    to_block: int | None = number(None, at_least=1)
    """Last routed block; null leaves two blocks behind it."""
    fill: Literal["entered", "learnt"] = "entered"
    """What takes their places: what entered (TREAD), or a learnt token, fused with what entered (SPRINT)."""
    path_drop: float = number(0.0, at_least=0, below=1, only_if=when("fill", "learnt"))
    """Probability that an image does without the routed blocks: what guidance by the dropped path learns from."""
    until_step: int = number(0, at_least=0)
    """Train with all tokens after this step, a few percent of a run; 0 routes to the end."""

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where the last block comes before the first."""
        if self.to_block is not None and self.to_block < self.from_block:
            raise InputError(
                f"{spell('to_block')}={self.to_block} is before {spell('from_block')}={self.from_block}; give the same "
                f"block or a later one"
            )
