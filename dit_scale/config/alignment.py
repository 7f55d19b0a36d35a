"""Every setting of representation alignment, with its default, its range and a sentence about it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_scale.config.fields import Spell, When, number, shown, unless, when
from dit_scale.errors import InputError


@dataclass(frozen=True)
class AlignmentConfig:
    only_if: ClassVar[When] = unless("encoders", ())

    encoders: tuple[str, ...] = ()
    """Frozen image encoders, each a hub name, a local folder, or `efficientnet`, which installs with pip; [] is off."""
    encoder_digests: tuple[str, ...] = ()
    """Digests of their weights; [] takes what is found and writes it into RUN/config.yaml."""
    after_block: int = number(8, at_least=1)
    """The block whose tokens are aligned with the encoders' features, counted from 1."""
    weight: float = number(0.5, at_least=0)
    """Weight of the loss, minus the cosine between both; it may change when a run is resumed."""
    projector: Literal["mlp", "conv"] = "mlp"
    """What maps tokens to features: three linear layers (REPA), or one 3 x 3 convolution (iREPA)."""
    projector_width: int = number(2048, at_least=1, only_if=when("projector", "mlp"))
    """Width between the three linear layers."""
    spatial_norm: float = number(0.0, at_least=0, at_most=1)
    """Part of an image's mean that is taken from its features before they are scaled (iREPA: 0.6); 0 leaves them."""

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where an encoder is named twice, or the digests are not one for each encoder."""
        if twice := next((name for name in self.encoders if self.encoders.count(name) > 1), None):
            raise InputError(f"{spell('encoders')} names {twice} twice; give each once")
        if self.encoder_digests and len(self.encoder_digests) != len(self.encoders):
            raise InputError(
                f"{spell('encoder_digests')}={shown(self.encoder_digests)} has {len(self.encoder_digests)} for "
                f"{len(self.encoders)} encoders; give one for each, or leave it out"
            )
