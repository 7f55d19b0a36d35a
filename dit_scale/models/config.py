"""What a network is: its sizes, its switches, and what its data ask of it, in one place.

``DiT`` takes these fields as keywords; presets and the keys ``model.*`` of a configuration set them by the same names.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import Parameter, signature
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args, get_origin

from dit_scale.errors import InputError, nearest
from dit_scale.models.route import Route

P = ParamSpec("P")
T = TypeVar("T")

FROM_DATA = ("latent_size", "num_classes", "in_channels", "num_times")
"""Fields that no preset and no configuration sets: latents, their classes and, for the times, the objective do."""
FROM_SECTIONS = ("route", "projectors")
"""Fields that no preset and no key ``model.*`` sets: sections of their own do."""
_OF_HEAD = ("head_hidden_size", "head_depth", "head_num_heads")


@dataclass(frozen=True, kw_only=True)
class Projectors:
    """Side layers that map a block's tokens to the features of frozen encoders."""

    after_block: int
    """The block whose tokens they take, counted from 1."""
    widths: tuple[int, ...]
    """Of the features, one projector each."""
    kind: Literal["mlp", "conv"] = "mlp"
    """Three linear layers, or one 3 x 3 convolution."""
    width: int = 2048
    """Between the three linear layers."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A whole network but for its weights.

    Raises:
        InputError: a switch that is unknown, or sizes that do not fit each other.
    """

    latent_size: int
    """Side of a latent, S."""
    num_classes: int
    """Labels, without the null label."""
    in_channels: int = 4
    """Channels of a latent, C."""
    patch_size: int
    """Side of a patch in latent pixels, P."""
    hidden_size: int
    """Width of a token, D."""
    depth: int
    """Blocks."""
    num_heads: int
    """Attention heads, H."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward layer over that of a token; SwiGLU's two halves have 2/3 of that each."""
    num_times: int = 1
    """How many times it is told of an image: 1, or 2 and more for objectives such as MeanFlow's."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """LayerNorm without parameters, or RMSNorm with a weight (arXiv 1910.07467)."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The feed-forward layer: GELU, or SwiGLU (arXiv 2002.05202)."""
    rope: bool = False
    """Queries and keys are rotated by their token's row and column (arXiv 2104.09864); the table of positions stays."""
    qk_norm: bool = False
    """Queries and keys are normalised, head by head (arXiv 2302.05442)."""
    adaln_shift: bool = True
    """Blocks shift what they normalise, and do not scale alone."""
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """Of the timestep: sinusoids of fixed frequencies, or of random ones, which are saved with the weights."""
    head_hidden_size: int | None = None
    """Width of the head: further blocks whose tokens are the latent's again, each under a conditioning that the blocks
    before have made of it (DDT, arXiv 2504.05741). None has no head, and so have the next two."""
    head_depth: int | None = None
    """Blocks of the head."""
    head_num_heads: int | None = None
    """Its attention heads."""
    condition: str = "label"
    """What it is told of an image, by its name in ``dit_scale.conditioning``."""
    label_dropout: float = 0.1
    """Above 0 the condition has a null; the label table, a row for it."""
    learn_sigma: bool = True
    """Twice the output channels."""
    early_block: int = 0
    """A second final layer, ``early_layer``, makes an output of the tokens that leave this block; 0 is none."""
    attention: Literal["auto", "xformers", "sdpa", "cudnn", "flash", "matmul"] = "auto"
    """The attention kernel."""
    route: Route | None = None
    """Which blocks some tokens may go around."""
    projectors: Projectors | None = None
    """Of alignment, in training alone."""

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, T."""
        return (self.latent_size // self.patch_size) ** 2

    @property
    def num_kept(self) -> int:
        """Tokens of an image that go through blocks which others go around, K."""
        return self.num_tokens if self.route is None else self.route.num_kept(self.num_tokens)

    @property
    def routed_blocks(self) -> range:
        """The numbers, from 1, of the blocks that tokens may go around."""
        return range(0) if self.route is None else self.route.blocks(self.depth)

    def __post_init__(self) -> None:
        """Check at the door."""
        if self.num_times < 1:
            raise InputError(f"num_times {self.num_times} is below 1; a network is told one time or more")
        if self.projectors is not None and self.projectors.after_block > self.depth:
            raise InputError(
                f"after_block {self.projectors.after_block} is not one of {self.depth} blocks; give 1 to {self.depth}"
            )
        for entry in fields(self):
            if get_origin(entry.type) is Literal:
                check_choice(entry.name, getattr(self, entry.name))
        _check_sizes(self.latent_size, self.patch_size, self.hidden_size, self.num_heads, self.label_dropout)
        self._check_width("hidden_size", "num_heads")
        given = {name: value for name in _OF_HEAD if (value := getattr(self, name)) is not None}
        if given and (len(given) < len(_OF_HEAD) or min(given.values()) < 1):
            told = ", ".join(f"{name}={given.get(name, 'null')}" for name in _OF_HEAD)
            raise InputError(f"a head has a width, a depth and attention heads, 1 or more, and here {told}; give all")
        if given:
            self._check_width("head_hidden_size", "head_num_heads")
        if not 0 <= self.early_block <= self.depth:
            raise InputError(
                f"early_block {self.early_block} is not one of {self.depth} blocks; give 1 to {self.depth}, or 0 for "
                f"none"
            )
        self._check_route()

    @property
    def stacks(self) -> "tuple[NetworkConfig, ...]":
        """The blocks that are alike, stack by stack as tokens pass them: all, or an encoder's and the head's."""
        if self.head_hidden_size is None or self.head_depth is None or self.head_num_heads is None:
            return (self,)
        encoder = replace(self, head_hidden_size=None, head_depth=None, head_num_heads=None)
        decoder = replace(encoder, early_block=0, route=None)
        head = replace(decoder, hidden_size=self.head_hidden_size, depth=self.head_depth, num_heads=self.head_num_heads)
        return encoder, head

    @property
    def head_size(self) -> int:
        """Numbers of a query or a key, d."""
        return self.hidden_size // self.num_heads

    def _check_route(self) -> None:
        """Raise InputError where a route does not fit, or a side layer would see a part of the tokens alone."""
        if self.route is None:
            return
        routed, is_partial = self.routed_blocks, self.num_kept < self.num_tokens
        after_block = 0 if self.projectors is None else self.projectors.after_block
        for name, block in (("early_block", self.early_block), ("after_block", after_block)):
            if is_partial and block in routed:
                raise InputError(
                    f"{name} {block} is one of blocks {routed.start} to {routed.stop - 1}, which see only a part of "
                    f"the tokens; give one before or behind these, or another route"
                )

    def _check_width(self, of_width: str, of_heads: str) -> None:
        """Raise InputError for a width, and attention heads, that do not fit; both by their fields' names."""
        width, heads = getattr(self, of_width), getattr(self, of_heads)
        if width % heads or width % 4:
            raise InputError(
                f"{of_width} {width} must be a multiple of {of_heads} {heads} and, for the table of positions, of 4; "
                "change one of the two"
            )
        if self.rope and width // heads % 4:
            raise InputError(
                f"{of_width} {width} over {of_heads} {heads} is {width // heads} numbers a head, and rope needs a "
                f"multiple of 4; change one of the two"
            )
        if int(width * self.mlp_ratio) < 1:
            raise InputError(f"mlp_ratio {self.mlp_ratio:g} of {of_width} {width} is an MLP of width 0; give more")


def choices_of(name: str) -> tuple[str, ...]:
    """Return what a switch may be."""
    (kind,) = (entry.type for entry in fields(NetworkConfig) if entry.name == name)
    return get_args(kind)


def check_choice(name: str, value: str) -> None:
    """Raise InputError where a switch cannot be ``value``."""
    if value not in choices_of(name):
        raise InputError(f"{name} {value!r} is unknown{nearest(value, choices_of(name))}")


def _check_sizes(latent_size: int, patch_size: int, hidden_size: int, num_heads: int, label_dropout: float) -> None:
    if min(latent_size, patch_size, hidden_size, num_heads) < 1:
        raise InputError(
            f"latent_size {latent_size}, patch_size {patch_size}, hidden_size {hidden_size} and num_heads {num_heads} "
            "must all be 1 or more; fix the one that is not"
        )
    if latent_size % patch_size:
        raise InputError(
            f"latent_size {latent_size} is not a multiple of patch_size {patch_size}; "
            "choose a patch_size that divides it"
        )
    if not 0 <= label_dropout < 1:
        raise InputError(f"label_dropout {label_dropout} is not in [0, 1); 0.1 is the published value")


def keywords_of(
    kind: Callable[P, Any],
) -> Callable[[Callable[Concatenate[T, ...], None]], Callable[Concatenate[T, P], None]]:
    """Have editors, type checkers and ``help()`` see the keywords of ``kind`` in an ``__init__(self, **settings)``."""

    def seen(init: Callable[Concatenate[T, ...], None]) -> Callable[Concatenate[T, P], None]:
        keywords = signature(kind)
        itself = Parameter("self", Parameter.POSITIONAL_ONLY)
        own = keywords.replace(parameters=[itself, *keywords.parameters.values()], return_annotation=None)
        vars(init)["__signature__"] = own
        return init

    return seen
