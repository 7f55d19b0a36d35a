"""The Inception network (arXiv 1512.00567) of 2015 that FID is defined on, with the names of its PyTorch weights.

The weights were converted from TensorFlow's, and so differ from torchvision's network: average pools leave the padding
out, the last block takes a maximum instead, batch norm has another epsilon, and there are 1008 classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE = 299
SPATIAL_CHANNELS = 7
"""Of ``mixed_6/conv``, as sFID takes them."""


class Outputs(NamedTuple):
    """What the metrics read."""

    pool: Tensor
    """``pool_3``, [N, 2048]."""
    spatial: Tensor
    """The first 7 channels of ``mixed_6/conv`` as TensorFlow lays them out, row, column, channel: [N, 17 x 17 x 7]."""
    logits: Tensor
    """Without bias, as ADM's suite and torch-fidelity take them: [N, 1008]."""


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Step(NamedTuple):
    """A unit of a branch; with stride 1 it keeps the size, with stride 2 it has no padding."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Fork = tuple[Step, ...]
Branch = tuple[Callable[[Tensor], Tensor] | Step | Fork, ...]


class Mixed(nn.Module):
    """Branches side by side, their channels joined; a branch is a row of pools, units and forks of units."""

    def __init__(self, inputs: int, *branches: Branch):
        super().__init__()
        self._branches = branches
        for branch in branches:
            width = inputs
            for part in branch:
                steps = () if callable(part) else (part,) if isinstance(part, Step) else part
                for step in steps:
                    unit = Unit(width, step.channels, step.kernel, step.stride, padded=step.stride == 1)
                    self.add_module(step.name, unit)
                width = sum(step.channels for step in steps) or width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._run(branch, x) for branch in self._branches], dim=1)

    def _run(self, branch: Branch, x: Tensor) -> Tensor:
        for part in branch:
            if callable(part):
                x = part(x)
            elif isinstance(part, Step):
                x = self.get_submodule(part.name)(x)
            else:
                x = torch.cat([self.get_submodule(step.name)(x) for step in part], dim=1)
        return x


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def _mixed_35(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        inputs,
        (Step("branch1x1", 64),),
        (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5))),
        (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3))),
        (_average, Step("branch_pool", pooled)),
    )


def _to_17(inputs: int) -> Mixed:
    return Mixed(
        inputs,
        (Step("branch3x3", 384, (3, 3), 2),),
        (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), 2)),
        (_halve,),
    )


def _mixed_17(inputs: int, width: int) -> Mixed:
    wide, tall = (1, 7), (7, 1)
    return Mixed(
        inputs,
        (Step("branch1x1", 192),),
        (Step("branch7x7_1", width), Step("branch7x7_2", width, wide), Step("branch7x7_3", 192, tall)),
        (
            Step("branch7x7dbl_1", width),
            Step("branch7x7dbl_2", width, tall),
            Step("branch7x7dbl_3", width, wide),
            Step("branch7x7dbl_4", width, tall),
            Step("branch7x7dbl_5", 192, wide),
        ),
        (_average, Step("branch_pool", 192)),
    )


def _to_8(inputs: int) -> Mixed:
    return Mixed(
        inputs,
        (Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2)),
        (
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, (1, 7)),
            Step("branch7x7x3_3", 192, (7, 1)),
            Step("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (_halve,),
    )


def _mixed_8(inputs: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    def fork(name: str) -> Fork:
        return Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1))

    return Mixed(
        inputs,
        (Step("branch1x1", 320),),
        (Step("branch3x3_1", 384), fork("branch3x3_2")),
        (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")),
        (pool, Step("branch_pool", 192)),
    )


class InceptionV3(nn.Module):
    """Uint8 images to the outputs that the metrics read."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, (3, 3), stride=2, padded=False)
        self.Conv2d_2a_3x3 = Unit(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Unit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Unit(80, 192, (3, 3), padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _mixed_35(192, 32), _mixed_35(256, 64), _mixed_35(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b, self.Mixed_6c = _mixed_17(768, 128), _mixed_17(768, 160)
        self.Mixed_6d, self.Mixed_6e = _mixed_17(768, 160), _mixed_17(768, 192)
        self.Mixed_7a = _to_8(768)
        self.Mixed_7b, self.Mixed_7c = _mixed_8(1280, _average), _mixed_8(2048, _maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Outputs:
        """Take uint8 images [N, H, W, 3]."""
        x = images.permute(0, 3, 1, 2).to(self.fc.weight.dtype)  # [N, 3, H, W]
        x = (resize_like_tensorflow(x, INPUT_SIZE) - 128.0) / 128.0  # [N, 3, 299, 299]
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [N, 64, 147, 147]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))  # [N, 192, 71, 71]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halve(x))))  # [N, 288, 35, 35]
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # [N, 768, 17, 17]
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # [N, 2023]; the first branch is branch1x1
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # [N, 2048, 8, 8]
        pool = x.mean(dim=(2, 3))  # [N, 2048]
        return Outputs(pool, spatial, pool @ self.fc.weight.T)


def resize_like_tensorflow(x: Tensor, size: int) -> Tensor:
    """Resize [N, C, H, W] to a square bilinearly as TensorFlow 1 does: pixel i is read at ``i * H / size``.

    PyTorch's own reads at ``(i + ½) * H / size - ½``.
    """
    for dim in (2, 3):
        length = x.shape[dim]
        position = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        low = position.long()
        fraction = (position - low).to(x.dtype).view((-1, 1) if dim == 2 else (-1,))
        below, above = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=length - 1))
        x = below + (above - below) * fraction
    return x
