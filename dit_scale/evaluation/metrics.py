"""The metrics as formulas: features in, numbers out; no network, no files."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24
"""Distances held at once: 64 MiB of fp32."""


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and unbiased covariance [D, D] of features, float64."""

    mean: Tensor
    covariance: Tensor

    def project(self, projection: Tensor) -> "Gaussian":
        """Return what the features have after ``features @ projection`` [D, K]."""
        return Gaussian(self.mean @ projection, projection.T @ self.covariance @ projection)


class Moments:
    """Mean and covariance of features that come in batches, held in float64."""

    def __init__(self, width: int):
        self.count = 0
        self._mean, self._scatter = torch.zeros(width).double(), torch.zeros(width, width).double()

    def add(self, features: Tensor) -> None:
        """Take in features [N, D] (Chan, Golub and LeVeque 1979, eq. 2.1: pairs of partial sums)."""
        features = features.cpu().double()
        count, total = len(features), self.count + len(features)
        mean = features.mean(0)
        centred, shift = features - mean, mean - self._mean
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return the Gaussian with these moments; the covariance is divided by N - 1, as numpy.cov does."""
        return Gaussian(self._mean, self._scatter / (self.count - 1))


def gaussian_of(features: Tensor) -> Gaussian:
    """Return mean and covariance of features [N, D]."""
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian()


class FrechetDistance:
    """Distance of Gaussians from one reference: ``|m - m_r|² + tr(C + C_r - 2 (C_r^½ C C_r^½)^½)``.

    Dowson and Landau (1982), eq. 4; FID where the features are Inception's (arXiv 1706.08500, eq. 6). The trace of
    the root is taken from eigenvalues of symmetric matrices, which stays exact where covariances have not full rank.
    """

    def __init__(self, reference: Gaussian):
        self._reference = reference
        values, vectors = torch.linalg.eigh(reference.covariance)
        self._root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T

    def to(self, other: Gaussian) -> float:
        """Return the distance; it may be below 0 by rounding."""
        product = self._root @ other.covariance @ self._root
        values = torch.linalg.eigvalsh((product + product.T) / 2)
        shift = other.mean - self._reference.mean
        traces = self._reference.covariance.trace() + other.covariance.trace()
        return (shift @ shift + traces - 2.0 * values.clamp(min=0.0).sqrt().sum()).item()


def random_projection(width: int, dimensions: int, seed: int) -> Tensor:
    """Return uniformly distributed orthonormal columns [D, K], float64 (Mezzadri, arXiv math-ph/0609050, section 5)."""
    normal = np.random.default_rng(seed).standard_normal((width, dimensions))
    q, r = np.linalg.qr(normal)
    return torch.from_numpy(q * np.sign(np.diag(r)))


def inception_scores(logits: Tensor, split_size: int) -> list[float]:
    """Return ``exp(mean KL(p(y|x) || p(y)))`` of consecutive splits of logits [N, C] (arXiv 1606.03498, section 4).

    The last split may be smaller, as in ADM's suite.
    """
    scores = []
    for part in logits.split(split_size):
        log_p = part.double().log_softmax(dim=1)
        p = log_p.exp()
        divergence = (p * (log_p - p.mean(0).log())).nan_to_num(nan=0.0).sum(dim=1)  # 0 log 0 = 0
        scores.append(divergence.mean().exp().item())
    return scores


def kernel_distances(samples: Tensor, reference: Tensor, subsets: int, size: int, seed: int) -> list[float]:
    """Return the unbiased squared MMD of random subsets, with the kernel ``(x·y / D + 1)³``.

    KID of Bińkowski et al., arXiv 1801.01401, eqs. 3 and 4; features are [N, D] and [M, D].
    """
    generator = np.random.default_rng(seed)
    return [
        _mmd(
            samples[generator.choice(len(samples), size, replace=False)].double(),
            reference[generator.choice(len(reference), size, replace=False)].double(),
        )
        for _ in range(subsets)
    ]


def _mmd(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def mean_off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    return (mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2.0 * kernel(x, y).mean()).item()


def manifold_radii(features: Tensor, neighbours: int) -> Tensor:
    """Return each feature's distance to its k-th nearest neighbour among the others, [N]."""
    blocks = features.split(_rows(features))
    # The nearest of all is the feature itself.
    return torch.cat([torch.cdist(block, features).kthvalue(neighbours + 1, dim=1).values for block in blocks])


def within(features: Tensor, manifold: Tensor, radii: Tensor) -> Tensor:
    """Return which features [N, D] lie in a ball around any feature of a manifold [M, D], bool [N].

    Its mean is precision where the manifold is the reference's, recall where it is the samples' (arXiv 1904.06991,
    eqs. 1 and 2).
    """
    blocks = features.split(_rows(manifold))
    return torch.cat([(torch.cdist(block, manifold) <= radii).any(dim=1) for block in blocks])


def _rows(others: Tensor) -> int:
    return max(1, _BLOCK_ELEMENTS // len(others))
