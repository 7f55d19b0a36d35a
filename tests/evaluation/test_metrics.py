"""The metrics against closed forms, and against torch-fidelity on the same features."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import mmd2
from torch_fidelity.metric_prc import calculate_precision_recall_full

from dit_scale.evaluation import metrics
from dit_scale.evaluation.metrics import FrechetDistance, Gaussian, Moments, gaussian_of


def features(count: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Return correlated features, fp32."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return torch.randn(count, width, generator=generator) @ mixing + shift


def test_frechet_distance_of_two_gaussians_whose_covariances_commute() -> None:
    mean, a, b = torch.tensor([3.0, 4.0]).double(), torch.tensor([4.0, 9.0]), torch.tensor([1.0, 16.0])
    reference, other = Gaussian(0 * mean, a.double().diag()), Gaussian(mean, b.double().diag())
    # |m|² + Σ (√a - √b)²
    assert FrechetDistance(reference).to(other) == pytest.approx(25.0 + 1.0 + 1.0, rel=1e-12)
    assert FrechetDistance(reference).to(reference) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_of_two_gaussians_whose_covariances_do_not_commute() -> None:
    # In two dimensions tr √(AB) = √(tr AB + 2 √(det AB)).
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    b = torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    root = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    expected = (a.trace() + b.trace() - 2 * root).item()
    zero = torch.zeros(2).double()
    assert FrechetDistance(Gaussian(zero, a)).to(Gaussian(zero, b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [400, 20])
def test_frechet_distance_is_torch_fidelitys(count: int) -> None:
    """Also with fewer samples than features."""
    a, b = features(count, 32, 1), features(count, 32, 2, shift=0.2)
    ours = FrechetDistance(gaussian_of(a)).to(gaussian_of(b))
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), verbose=False
    )
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_a_covariance_without_full_rank_has_a_root() -> None:
    few = features(10, 64, 3).double()
    gaussian = gaussian_of(few)
    assert FrechetDistance(gaussian).to(gaussian) == pytest.approx(0.0, abs=1e-5)
    shifted = Gaussian(gaussian.mean + 1.0, gaussian.covariance)
    assert FrechetDistance(gaussian).to(shifted) == pytest.approx(64.0, rel=1e-6)


def test_moments_of_batches_are_numpys_of_the_whole() -> None:
    whole = features(101, 8, 4, shift=50.0)
    moments = Moments(8)
    for batch in whole.split(7):
        moments.add(batch)
    gaussian = moments.gaussian()
    np.testing.assert_allclose(gaussian.mean, whole.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, np.cov(whole.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


def test_a_projection_is_orthonormal_and_fixed_by_its_seed() -> None:
    projection = metrics.random_projection(40, 8, seed=0)
    torch.testing.assert_close(projection.T @ projection, torch.eye(8).double())
    assert torch.equal(projection, metrics.random_projection(40, 8, seed=0))
    assert not torch.equal(projection, metrics.random_projection(40, 8, seed=1))
    samples = features(100, 40, 5).double()
    projected = gaussian_of(samples).project(projection)
    torch.testing.assert_close(projected.covariance, gaussian_of(samples @ projection).covariance)
    torch.testing.assert_close(projected.mean, gaussian_of(samples @ projection).mean)


def test_inception_score_is_torch_fidelitys_in_equal_splits() -> None:
    logits = features(600, 10, 6) * 3
    scores = metrics.inception_scores(logits, split_size=200)
    theirs = isc_features_to_metric(logits, splits=3, shuffle=False)
    assert np.mean(scores) == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert np.std(scores) == pytest.approx(theirs["inception_score_std"], rel=1e-4)


def test_inception_score_of_certain_and_of_clueless_predictions() -> None:
    certain = 1000.0 * torch.eye(4).repeat(5, 1)
    assert metrics.inception_scores(certain, 5_000) == pytest.approx([4.0])
    assert metrics.inception_scores(torch.zeros(20, 4), 5_000) == pytest.approx([1.0])
    assert len(metrics.inception_scores(certain, 8)) == 3  # the last one smaller


def test_kernel_distance_is_torch_fidelitys_on_whole_sets() -> None:
    x, y = features(50, 16, 7).double(), features(50, 16, 8, shift=0.3).double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return ((a @ b.T / 16 + 1) ** 3).numpy()

    (ours,) = metrics.kernel_distances(x, y, subsets=1, size=50, seed=0)  # whole sets, in another order
    assert ours == pytest.approx(mmd2(kernel(x, x), kernel(x, y), kernel(y, y)), rel=1e-9)


def test_kernel_distance_is_unbiased_and_fixed_by_its_seed() -> None:
    x, y = features(400, 16, 9), features(400, 16, 10)
    distances = metrics.kernel_distances(x, y, subsets=50, size=100, seed=0)
    assert abs(np.mean(distances)) < 0.1 < np.mean(metrics.kernel_distances(x, y + 0.5, 50, 100, 0))
    assert min(distances) < 0.0 < max(distances)
    assert distances == metrics.kernel_distances(x, y, 50, 100, 0) != metrics.kernel_distances(x, y, 50, 100, 1)


@pytest.mark.parametrize("block_elements", [1 << 24, 1000])
def test_precision_and_recall_are_torch_fidelitys_in_any_blocks(
    block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", block_elements)
    samples, real = features(150, 6, 11) * 0.7, features(170, 6, 12)
    precision = metrics.within(samples, real, metrics.manifold_radii(real, 3)).float().mean().item()
    recall = metrics.within(real, samples, metrics.manifold_radii(samples, 3)).float().mean().item()
    assert (precision, recall) == pytest.approx(calculate_precision_recall_full(samples, real, neighborhood=3))
    assert 0.0 < recall < precision < 1.0


def test_precision_and_recall_of_points_on_a_line() -> None:
    real = torch.arange(10.0)[:, None]
    radii = metrics.manifold_radii(real, 3)
    assert radii.tolist() == [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0]
    assert metrics.within(torch.tensor([[-2.9], [-3.1], [4.5], [12.1]]), real, radii).tolist() == [
        True,
        False,
        True,
        False,
    ]
