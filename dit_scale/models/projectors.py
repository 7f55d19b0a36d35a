"""Side layers that map a block's tokens to the features of frozen encoders, under the published names.

N samples of T tokens of width D on a grid of G x G places; features of width E.
"""

from torch import Tensor, nn

from dit_scale.models.config import NetworkConfig


def build_projectors(config: NetworkConfig) -> nn.ModuleList:
    """Return a projector for each encoder, with its initial values; none where the network has none."""
    asked = config.projectors
    if asked is None:
        return nn.ModuleList()
    if asked.kind == "conv":
        return nn.ModuleList(ConvProjector(config.hidden_size, width) for width in asked.widths)
    return nn.ModuleList(_mlp(config.hidden_size, asked.width, width) for width in asked.widths)


def _mlp(hidden_size: int, width: int, features: int) -> nn.Sequential:
    """Return REPA's projector (arXiv 2410.06940, section 3.2): [N, T, D] to [N, T, E]."""
    sizes = [(hidden_size, width), (width, width), (width, features)]
    first, second, third = (_linear(*size) for size in sizes)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third)


def _linear(size_in: int, size_out: int) -> nn.Linear:
    layer = nn.Linear(size_in, size_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ConvProjector(nn.Conv2d):
    """iREPA's projector: one 3 x 3 convolution over the grid of tokens, with PyTorch's own initial values."""

    def __init__(self, hidden_size: int, features: int) -> None:
        super().__init__(hidden_size, features, kernel_size=3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [N, T, D] to [N, T, E]."""
        side = round(tokens.shape[1] ** 0.5)
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))  # [N, D, G, G]
        return super().forward(grid).flatten(2).transpose(1, 2)  # [N, T, E]
