"""The network of the fitted codec: a linear codec of patches, and what two small networks add to it."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_DEVIATION = 0.03
"""What a network's input is divided by at least, where the latents' rms is 1: so that rounding is not blown up."""


class PatchNetwork(nn.Module):
    """Images [N, 3, S, S] to latents [N, C, h, w] and back; new ones are exactly the linear codec.

    Nearly all arithmetic is products of matrices on patches, [N, h, w, D] in memory: cheap on a CPU, which fits it.
    """

    components: Tensor
    mean: Tensor
    deviations: Tensor

    def __init__(self, patch_size: int, channels: int, width: int, encoder_depth: int, decoder_depth: int):
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        numbers = 3 * patch_size**2
        self.register_buffer("components", torch.ones(numbers, numbers))  # orthogonal rows, all of one length
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("deviations", torch.ones(numbers))  # of what each component gives
        with torch.device("meta"):  # no draws from the global generator
            self.encoder = nn.Sequential(
                nn.Linear(numbers, width), *(_Block(width) for _ in range(encoder_depth)), nn.Linear(width, channels)
            )
            self.decoder = nn.Sequential(
                _Around(channels, width), *(_Block(width) for _ in range(decoder_depth)), nn.Linear(width, numbers)
            )
        self.to_empty(device="cpu")

    @torch.no_grad()
    def begin(self, components: Tensor, mean: Tensor, deviations: Tensor, generator: torch.Generator) -> Self:
        """Give the linear codec, and initial values with which the networks add nothing to it."""
        self.components.copy_(components)
        self.mean.copy_(mean)
        self.deviations.copy_(deviations)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, _Block):
                module.begin()
        for last in (self.encoder[-1], self.decoder[-1]):
            assert isinstance(last, nn.Linear)
            last.weight.zero_()
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Return latents [N, C, h, w] of images [N, 3, S, S] in [-1, 1]."""
        linear, added = self.encode_apart(images)
        return linear + added

    def encode_apart(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the linear codec's latents and what the network adds to them, [N, C, h, w] each."""
        patches = F.pixel_unshuffle(images, self.patch_size).movedim(1, -1)  # [N, h, w, D]
        codes = (patches - self.mean) @ self.components.T  # [N, h, w, D]
        added = self.encoder(codes / (self.deviations + _LEAST_DEVIATION))  # [N, h, w, C]
        return codes[..., : self.channels].movedim(-1, 1), added.movedim(-1, 1)  # [N, C, h, w] each

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, 3, S, S], about in [-1, 1], of latents [N, C, h, w]."""
        codes = latents.movedim(1, -1)  # [N, h, w, C]
        components = self.components[: self.channels]
        patches = codes @ (components / components.square().sum(1, keepdim=True)) + self.mean  # [N, h, w, D]
        added = self.decoder(codes / (self.deviations[: self.channels] + _LEAST_DEVIATION))  # [N, h, w, D]
        return F.pixel_shuffle((patches + added).movedim(-1, 1), self.patch_size)  # [N, 3, S, S]


class _Around(nn.Conv2d):
    """A 3x3 convolution of [N, h, w, D]."""

    def __init__(self, width_in: int, width_out: int, groups: int = 1):
        super().__init__(width_in, width_out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)  # [N, h, w, D]


class _Block(nn.Module):
    """A look at the neighbours of each patch, then an MLP, added to the input.

    The block of ConvNeXt (Liu et al., arXiv 2201.03545, figure 4) without its norm, which so few layers do not need.
    """

    def __init__(self, width: int):
        super().__init__()
        self.around = _Around(width, width, groups=width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def begin(self) -> None:
        """Begin as the identity, which looks mostly at the patch itself."""
        self.around.weight.mul_(0.3)
        self.around.weight[:, 0, 1, 1] += 1.0
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.silu(self.widen(self.around(x))))  # [N, h, w, D]
