"""Which tokens of each image of a step go through the routed blocks: draws of their own, by position in the stream."""

from dataclasses import dataclass, replace

from torch import Tensor

from dit_scale import draws
from dit_scale.config import Config
from dit_scale.draws import Stream
from dit_scale.models import DiT


@dataclass(frozen=True)
class TokenDraws:
    """What an image loses on its way: tokens, or the whole path through the routed blocks."""

    num_tokens: int
    num_kept: int
    path_drop: float = 0.0
    """Probability that an image does without the path."""
    num_routed_images: int | None = None
    """Images of the stream after which no token is left out; None is never."""

    def at(self, position: int) -> "TokenDraws":
        """Return the draws of a step that holds the image at this position."""
        is_over = self.num_routed_images is not None and position >= self.num_routed_images
        return replace(self, num_kept=self.num_tokens) if is_over else self

    def draw(self, seed: int, positions: Tensor) -> dict[str, Tensor]:
        """Return what the network is told for images at these positions [N], by the names of its arguments."""
        told = {}
        if self.num_kept < self.num_tokens:
            told["kept_tokens"] = draws.subset(seed, Stream.ROUTING, positions, self.num_tokens, self.num_kept)
        if self.path_drop:
            told["path_dropped"] = draws.uniform(seed, Stream.PATH_DROP, positions) < self.path_drop
        return told


def token_draws(config: Config, model: DiT) -> TokenDraws | None:
    """Return the draws of a run, None where it routes no tokens."""
    routing, network = config.routing, model.config
    if not routing.ratio:
        return None
    images = routing.until_step * config.train.global_batch_size
    return TokenDraws(network.num_tokens, network.num_kept, routing.path_drop, images or None)
