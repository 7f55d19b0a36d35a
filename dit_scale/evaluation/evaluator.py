"""Samples in, metrics out: what `dit-scale evaluate` and a training run both call."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_scale.evaluation.extractors import Extractor, Features
from dit_scale.evaluation.metrics import (
    FrechetDistance,
    Gaussian,
    gaussian_of,
    inception_scores,
    kernel_distances,
    manifold_radii,
    random_projection,
    within,
)
from dit_scale.evaluation.reference import Reference, check_count

HIGHER_IS_BETTER = ("inception_score", "precision", "recall")
"""How such metrics' names begin; of all others less is better."""
NEIGHBOURS = 3
"""k of precision and recall, as in ADM's suite."""
SPLIT_SIZE = 5_000
"""Samples in a split of the Inception Score, as in ADM's suite."""
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1_000
SPREAD_SUBSETS = 4
"""Equal random parts of the images, for the spread of Fréchet distances, precision and recall."""
_SEED = 0


@dataclass
class Scores:
    """What was measured, and what it takes to measure the same again."""

    metrics: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float | None] = field(default_factory=dict)
    """Standard deviation of each metric over parts of the images; null where there is one part."""
    definitions: dict[str, Any] = field(default_factory=dict)
    """The parameters of each metric."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers should know."""

    def add(self, name: str, value: float, parts: list[float], **definition: Any) -> None:
        """Write down a metric, its value for each part and its parameters."""
        self.metrics[name] = value
        self.spread[name] = float(np.std(parts, ddof=1)) if len(parts) > 1 else None
        self.definitions[name] = definition


class Evaluator:
    """Compares images with one reference."""

    def __init__(self, extractor: Extractor, reference: Reference):
        self.extractor, self.reference = extractor, reference
        is_inception = extractor.name == "inception"
        own = extractor.name.replace("-", "_")  # only with Inception's features may a metric bear its usual name
        self._names = {
            "frechet": "fid" if is_inception else f"frechet_{own}",
            "kernel": "kid" if is_inception else f"kernel_{own}",
            "precision": "precision" if is_inception else f"precision_{own}",
            "recall": "recall" if is_inception else f"recall_{own}",
        }
        self._distances: dict[tuple[str, int], FrechetDistance] = {}

    def metric_names(self) -> list[str]:
        """Return what will be measured."""
        names = [self._names["frechet"]]
        names += ["sfid"] if self.reference.spatial is not None else []
        names += ["inception_score"] if self.extractor.name == "inception" else []
        compared = ("precision", "recall", "kernel") if self.reference.features is not None else ()
        return names + [self._names[kind] for kind in compared]

    def evaluate(self, batches: Iterable[np.ndarray]) -> Scores:
        """Return the metrics of images, uint8 [N, H, W, 3] a batch; raises InputError where they are too few."""
        return self.judge([self.extractor(torch.from_numpy(np.ascontiguousarray(batch))) for batch in batches])

    def judge(self, parts: list[Features]) -> Scores:
        """Return the metrics of images of which the features are known; raises InputError where they are too few."""
        features = _joined(parts)
        check_count(len(features.pool), "the set of samples")
        scores = Scores()
        self._add_frechet(scores, features)
        self._add_score(scores, features)
        self._add_neighbours(scores, features.pool)
        scores.definitions["spread"] = {"parts": SPREAD_SUBSETS, "seed": _SEED}
        return scores

    def _add_frechet(self, scores: Scores, features: Features) -> None:
        reference, name = self.reference, self._names["frechet"]
        samples = features.pool.double()
        projection, definition = self._projection(len(samples))
        if projection is None:
            self._add_distance(scores, name, samples, reference.pool, covariance="unbiased", projection=None)
        else:
            pool = reference.pool.project(projection)
            self._add_distance(scores, name, samples @ projection, pool, covariance="unbiased", projection=definition)
        if features.spatial is not None and reference.spatial is not None:
            self._add_distance(scores, "sfid", features.spatial, reference.spatial, covariance="unbiased")

    def _projection(self, count: int) -> tuple[Tensor | None, dict[str, int] | None]:
        """Return a projection to fewer dimensions than a part has images, where features outnumber images.

        FID is defined without one, and stays so.
        """
        if self.reference.features is not None:
            count = min(count, len(self.reference.features))
        width = self.extractor.width
        if self.extractor.name == "inception" or count > width:
            return None, None
        dimensions = 1 << (count // SPREAD_SUBSETS).bit_length() - 1
        return random_projection(width, dimensions, _SEED), {"dimensions": dimensions, "seed": _SEED}

    def _add_distance(
        self, scores: Scores, name: str, features: Tensor, reference: Gaussian, **definition: Any
    ) -> None:
        key = name, features.shape[1]  # a training run asks again and again
        if key not in self._distances:
            self._distances[key] = FrechetDistance(reference)
        distance = self._distances[key]
        parts = [distance.to(gaussian_of(features[part])) for part in _parts(len(features))]
        scores.add(name, distance.to(gaussian_of(features)), parts, **definition)
        if len(features) <= features.shape[1]:
            scores.notes.append(
                f"{name}: {len(features)} samples for {features.shape[1]} features, so their covariance has not full "
                f"rank and the distance is too large; compare it at this number of samples alone"
            )

    def _add_score(self, scores: Scores, features: Features) -> None:
        if features.logits is None:
            return
        splits = inception_scores(features.logits, SPLIT_SIZE)
        value = float(np.mean(splits))
        scores.add("inception_score", value, splits, split_size=SPLIT_SIZE, splits=len(splits), logits="without bias")

    def _add_neighbours(self, scores: Scores, samples: Tensor) -> None:
        """Add precision, recall and the kernel distance, which compare features one by one."""
        if self.reference.features is None:
            scores.notes.append("the reference holds statistics alone: no precision, recall or kernel distance")
            return
        samples, real = (each.to(self.extractor.device) for each in (samples, self.reference.features))
        for name, features, manifold in (("precision", samples, real), ("recall", real, samples)):
            hits = within(features, manifold, manifold_radii(manifold, NEIGHBOURS)).float().cpu()
            parts = [hits[part].mean().item() for part in _parts(len(hits))]
            scores.add(self._names[name], hits.mean().item(), parts, neighbours=NEIGHBOURS)
        size = min(KERNEL_SUBSET_SIZE, len(samples) // 2, len(real) // 2)
        distances = kernel_distances(samples, real, KERNEL_SUBSETS, size, _SEED)
        kernel = {"kernel": "(x·y / D + 1)^3", "subsets": KERNEL_SUBSETS, "subset_size": size, "seed": _SEED}
        scores.add(self._names["kernel"], float(np.mean(distances)), distances, **kernel)


def _joined(parts: list[Features]) -> Features:
    def join(tensors: list[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present) if present else None

    pool = join([part.pool for part in parts])
    return Features(
        pool if pool is not None else torch.zeros(0, 0),
        join([part.spatial for part in parts]),
        join([part.logits for part in parts]),
    )


def _parts(count: int) -> list[Tensor]:
    """Split the numbers of images at random into equal parts."""
    order = torch.from_numpy(np.random.default_rng(_SEED).permutation(count))
    size = count // SPREAD_SUBSETS
    return [order[part * size : (part + 1) * size] for part in range(SPREAD_SUBSETS)]
