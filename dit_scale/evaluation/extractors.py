"""What turns images into features: Inception from a file of weights, or a small classifier that installs with pip."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_scale.classifier import DEVIATION, MEAN, PACKAGE, WIDTH, load_classifier
from dit_scale.errors import InputError, nearest
from dit_scale.evaluation.inception import InceptionV3
from dit_scale.files import sha256_file
from dit_scale.interop import read_weights
from dit_scale.weights import load_strictly

Name = Literal["inception", "efficientnet-lite0"]
NAMES: tuple[Name, ...] = get_args(Name)
_TRAININGS = "num_batches_tracked"
"""A counter that only training uses, and that some files hold."""


@dataclass(frozen=True)
class Features:
    """What a network says about images, fp32 on the CPU."""

    pool: Tensor
    """[N, D]"""
    spatial: Tensor | None = None
    """[N, 2023], Inception only: what sFID compares."""
    logits: Tensor | None = None
    """[N, 1008], Inception only: what the Inception Score is made of."""

    def first(self, count: int) -> "Features":
        """Return those of the first images."""
        spatial = None if self.spatial is None else self.spatial[:count]
        return Features(self.pool[:count], spatial, None if self.logits is None else self.logits[:count])


class Extractor(ABC):
    """A frozen network in fp32."""

    name: Name
    width: int
    """Numbers in a feature."""
    spatial_width: int = 0
    _network: Any
    weights_digest: str
    """SHA-256 of the file of weights."""
    package: str | None = None
    """Where network and weights come from, if from a package."""

    def __init__(self, device: str):
        self.device = device

    def identity(self) -> dict[str, Any]:
        """Return what tells this extractor from others."""
        return {"name": self.name, "weights_sha256": self.weights_digest, "package": self.package}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return the features of uint8 images [N, H, W, 3]."""
        # Without TF32, so that a GPU's numbers are a CPU's to fp32's rounding.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._features(images.to(self.device))

    @abstractmethod
    def _features(self, images: Tensor) -> Features: ...


class Inception(Extractor):
    """The network of FID, sFID and the Inception Score."""

    name: Name = "inception"
    width = 2048
    spatial_width = 2023

    def __init__(self, weights: Path, device: str):
        super().__init__(device)
        self._network = InceptionV3()
        _load(self._network, weights)
        self._network.to(device).eval()
        self.weights_digest = sha256_file(weights)

    def _features(self, images: Tensor) -> Features:
        outputs = self._network(images)
        return Features(outputs.pool.cpu(), outputs.spatial.cpu(), outputs.logits.cpu())


class EfficientNetLite0(Extractor):
    """A small ImageNet classifier; its last features before the classes."""

    name: Name = "efficientnet-lite0"
    width = WIDTH
    package = PACKAGE
    _SIZE = 224

    def __init__(self, device: str):
        super().__init__(device)
        or_else = ", or give Inception's --weights (in a run: evaluation.weights)"
        self._network, self.weights_digest = load_classifier(f"features of {self.name}", or_else)
        self._network.to(device).eval()

    def _features(self, images: Tensor) -> Features:
        x = (images.permute(0, 3, 1, 2).float() - MEAN) / DEVIATION  # [N, 3, H, W]
        x = F.interpolate(x, (self._SIZE, self._SIZE), mode="bilinear", antialias=True)  # [N, 3, 224, 224]
        features: Tensor = self._network.extract_features(x)  # [N, 1280, 7, 7]
        return Features(features.mean(dim=(2, 3)).cpu())  # [N, 1280]


def load_extractor(name: str | None, weights: Path | None, device: str) -> Extractor:
    """Return an extractor by its name; null is Inception where its weights are given, else efficientnet-lite0.

    Raises InputError for an unknown name, and for weights that are missing, not weights or another network's.
    """
    name = name or ("inception" if weights is not None else "efficientnet-lite0")
    if name == "inception":
        if weights is None:
            raise InputError(
                "features of inception need its weights (no package ships them); give --weights with a copy of "
                "weights-inception-2015-12-05-6726825d.pth, or --features efficientnet-lite0"
            )
        return Inception(weights, device)
    if name != "efficientnet-lite0":
        raise InputError(f"features '{name}' are unknown{nearest(name, NAMES)}")
    if weights is not None:
        raise InputError(f"features of {name} bring their own weights; leave out --weights, or give inception")
    return EfficientNetLite0(device)


def _load(network: nn.Module, path: Path) -> None:
    """Load a file of named tensors; names and shapes must be the network's."""
    if not path.is_file():
        raise InputError(f"weights '{path}' are not a file; give a local copy")
    weights = {name: value for name, value in read_weights(path).items() if not name.endswith(_TRAININGS)}
    unused = [name for name in network.state_dict() if name.endswith(_TRAININGS)]
    load_strictly(network, weights, str(path), "give this network's own", may_lack=unused)
