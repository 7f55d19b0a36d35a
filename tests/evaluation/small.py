"""A small extractor, weights of Inception that need no download, and images on disk."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dit_scale.evaluation.extractors import Extractor, Features
from dit_scale.evaluation.inception import InceptionV3
from tests.preprocessing.images import picture


class Patches(Extractor):
    """Mean colours of quarters as features, and all that Inception gives: fast enough to judge hundreds of images."""

    name = "inception"
    width, spatial_width = 12, 6
    weights_digest = "0" * 64

    def _features(self, images: Tensor) -> Features:
        x = images.permute(0, 3, 1, 2).float() / 255.0
        pool = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        spatial = nn.functional.adaptive_max_pool2d(x, (1, 2)).flatten(1)
        return Features(pool, spatial, 4.0 * pool)


class Counting(Patches):
    """Counts the images that it has looked at."""

    seen = 0

    def _features(self, images: Tensor) -> Features:
        self.seen += len(images)
        return super()._features(images)


class Anonymous(Patches):
    """The same network where it is not Inception."""

    name = "efficientnet-lite0"
    spatial_width = 0

    def _features(self, images: Tensor) -> Features:
        return Features(super()._features(images).pool)


def pictures(numbers: range, size: int = 16) -> np.ndarray:
    """Return pictures as uint8 [N, size, size, 3]."""
    return np.stack([np.asarray(picture(number, size, size)) for number in numbers])


def write_folder(folder: Path, images: np.ndarray) -> Path:
    """Write images as PNGs in their order."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:06d}.png")
    return folder


def random_inception_weights(path: Path) -> Path:
    """Write weights at random that keep activations in range, with batch norm's numbers at random, too."""
    torch.manual_seed(0)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), path)
    return path
