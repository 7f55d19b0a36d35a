"""References, metrics and protocols together; and an order of real images that any measure must find."""

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_scale.autoencoder import PCACodec, from_uint8, to_uint8
from dit_scale.errors import InputError
from dit_scale.evaluation import (
    Evaluator,
    differences,
    load_extractor,
    load_reference,
    open_images,
    protocol_of,
    reference_of,
)
from dit_scale.evaluation.extractors import Features
from tests.evaluation.small import Anonymous, Counting, Patches, pictures, write_folder

EMOJI = Path(__file__).parents[2] / "quickstart" / "images.py"


def test_a_set_compared_with_itself(tmp_path: Path) -> None:
    images = pictures(range(60))
    write_folder(tmp_path / "real", images)
    extractor = Patches("cpu")
    reference = load_reference(tmp_path / "real", extractor, cache=None)
    scores = Evaluator(extractor, reference).evaluate(np.array_split(images, 7))
    assert set(scores.metrics) == {"fid", "sfid", "inception_score", "precision", "recall", "kid"}
    assert scores.metrics["fid"] == pytest.approx(0.0, abs=1e-9)
    assert scores.metrics["sfid"] == pytest.approx(0.0, abs=1e-9)
    assert (scores.metrics["precision"], scores.metrics["recall"]) == (1.0, 1.0)
    assert 1.0 < scores.metrics["inception_score"] < 12.0
    assert scores.spread["inception_score"] is None  # one split
    assert 0.0 < scores.spread["fid"] < 1.0  # type: ignore[operator]
    assert scores.definitions["kid"]["subset_size"] == 30
    assert scores.notes == []


def test_batches_do_not_matter_and_other_images_are_further_away() -> None:
    images, others = pictures(range(60)), 255 - pictures(range(60, 120))
    extractor = Patches("cpu")
    evaluator = Evaluator(extractor, reference_of([images], 60, extractor, {}))
    far = evaluator.evaluate([others])
    assert far.metrics == pytest.approx(evaluator.evaluate(np.array_split(others, 9)).metrics)
    near = evaluator.evaluate([pictures(range(200, 260))]).metrics
    assert near["fid"] < far.metrics["fid"]
    assert near["kid"] < far.metrics["kid"]


def test_a_reference_is_extracted_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", pictures(range(40)))
    extractor = Counting("cpu")
    first = load_reference(tmp_path / "real", extractor, tmp_path / "cache")
    again = load_reference(tmp_path / "real", extractor, tmp_path / "cache")
    assert extractor.seen == 40
    assert torch.equal(first.pool.covariance, again.pool.covariance)
    assert first.features is not None
    assert again.features is not None
    assert torch.equal(first.features, again.features)
    assert (first.identity, first.size) == (again.identity, again.size)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])  # of a disk that was full, say
    load_reference(tmp_path / "real", extractor, tmp_path / "cache")
    write_folder(tmp_path / "real", pictures(range(1, 41)))  # other images in the same place
    load_reference(tmp_path / "real", extractor, tmp_path / "cache")
    assert extractor.seen == 120


def test_adms_stored_statistics(tmp_path: Path) -> None:
    images, samples = pictures(range(50)), pictures(range(50, 90))
    extractor = Patches("cpu")
    features = extractor(torch.from_numpy(images))
    assert features.spatial is not None
    statistics = {
        "mu": features.pool.double().mean(0).numpy(),
        "sigma": np.cov(features.pool.double().numpy(), rowvar=False),
        "mu_s": features.spatial.double().mean(0).numpy(),
        "sigma_s": np.cov(features.spatial.double().numpy(), rowvar=False),
    }
    write_folder(tmp_path / "folder", images)
    np.savez(tmp_path / "bare.npz", **statistics)
    np.savez(tmp_path / "with-images.npz", **statistics, arr_0=images)
    scores = {
        name: Evaluator(extractor, load_reference(tmp_path / name, extractor, None)).evaluate([samples])
        for name in ("folder", "bare.npz", "with-images.npz")
    }
    whole = scores["folder"].metrics
    assert scores["with-images.npz"].metrics == pytest.approx(whole)
    assert scores["bare.npz"].metrics == pytest.approx({k: whole[k] for k in ("fid", "sfid", "inception_score")})
    assert "statistics alone" in scores["bare.npz"].notes[0]
    with pytest.raises(InputError, match=r"statistics of Inception, which features of efficientnet-lite0 cannot"):
        load_reference(tmp_path / "bare.npz", Anonymous("cpu"), None)
    np.savez(tmp_path / "short.npz", **statistics | {"mu": np.zeros(5)})
    with pytest.raises(InputError, match=r"hold mu and sigma of shapes \(5,\) and \(12, 12\), not \(12,\)"):
        load_reference(tmp_path / "short.npz", extractor, None)
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        load_reference(tmp_path / "pickled.npz", extractor, None)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    extractor = Patches("cpu")
    write_folder(tmp_path / "real", pictures(range(15)))
    with pytest.raises(InputError, match="holds 15 images, and the metrics need 16"):
        load_reference(tmp_path / "real", extractor, None)
    evaluator = Evaluator(extractor, reference_of([pictures(range(20))], 20, extractor, {}))
    with pytest.raises(InputError, match="holds 3 images, and the metrics need 16"):
        evaluator.evaluate([pictures(range(3))])
    with pytest.raises(InputError, match="holds 0 images"):
        evaluator.evaluate([])


def test_another_network_is_not_called_fid_and_is_projected_where_images_are_few() -> None:
    extractor = Anonymous("cpu")
    extractor.width = 12
    evaluator = Evaluator(extractor, reference_of([pictures(range(40))], 40, extractor, {}))
    scores = evaluator.evaluate([pictures(range(40, 80))])
    assert set(scores.metrics) == {
        f"{name}_efficientnet_lite0" for name in ("frechet", "precision", "recall", "kernel")
    }
    assert scores.definitions["frechet_efficientnet_lite0"]["projection"] is None
    scores = Evaluator(Wide("cpu"), reference_of([pictures(range(40))], 40, Wide("cpu"), {})).evaluate(
        [pictures(range(40, 80))]
    )
    assert scores.definitions["frechet_efficientnet_lite0"]["projection"] == {"dimensions": 8, "seed": 0}
    assert scores.notes == []


class Wide(Anonymous):
    """More features than the tests have images."""

    width = 48

    def _features(self, images: torch.Tensor) -> Features:
        return Features(torch.nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2) / 255.0, 4).flatten(1))


def test_fid_is_never_projected_and_says_when_samples_are_too_few() -> None:
    class WideInception(Wide):
        name = "inception"

    extractor = WideInception("cpu")
    scores = Evaluator(extractor, reference_of([pictures(range(40))], 40, extractor, {})).evaluate(
        [pictures(range(40, 80))]
    )
    assert scores.definitions["fid"]["projection"] is None
    assert "fid: 40 samples for 48 features" in scores.notes[0]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Draw emoji, or skip where the font cannot be had."""
    script, out = runpy.run_path(str(EMOJI)), tmp_path_factory.mktemp("emoji") / "images"
    if absent := script["missing"](script["FONT"], script["LABELS"]):
        pytest.skip(f"{absent} missing: install {' '.join(script['PACKAGES'])}")
    script["render"](script["choose"](script["LABELS"], script["FONT"]), script["FONT"], 64, out)
    images = np.concatenate(list(open_images(out).batches(64)))
    return images[np.random.default_rng(0).permutation(len(images))[:160]]


def test_real_images_better_worse_noise(emoji: np.ndarray) -> None:
    """At equal counts, projected: half the real images, then a codec of 16 channels, of 4, and random pixels."""
    real, other = np.split(emoji, 2)
    planes = torch.from_numpy(other).permute(0, 3, 1, 2)

    def restored(channels: int) -> np.ndarray:
        codec = PCACodec.fit([torch.from_numpy(real).permute(0, 3, 1, 2)], 8, channels)
        decoded = codec.decode(codec.encode(from_uint8(planes))[:, :channels])
        return to_uint8(decoded).permute(0, 2, 3, 1).numpy()

    extractor = load_extractor("efficientnet-lite0", None, "cpu")
    evaluator = Evaluator(extractor, reference_of(np.array_split(real, 5), 80, extractor, {}))
    noise = np.random.default_rng(1).integers(0, 256, other.shape, dtype=np.uint8)
    scores = [evaluator.evaluate(np.array_split(images, 5)) for images in (other, restored(16), restored(4), noise)]
    for name in ("frechet_efficientnet_lite0", "kernel_efficientnet_lite0"):
        values, spreads = [s.metrics[name] for s in scores], [s.spread[name] for s in scores]
        for i in range(3):  # and by more than the spread
            assert values[i] + max(spreads[i], spreads[i + 1]) < values[i + 1], (name, values, spreads)  # type: ignore
    precision = [s.metrics["precision_efficientnet_lite0"] for s in scores]
    assert precision[0] > max(precision[1:])
    assert scores[0].definitions["frechet_efficientnet_lite0"]["projection"]["dimensions"] == 16


def test_differences_name_all_but_the_model() -> None:
    extractor = Patches("cpu")
    evaluator = Evaluator(extractor, reference_of([pictures(range(20))], 20, extractor, {"xxh3": "a", "images": 20}))
    scores = evaluator.evaluate([pictures(range(20))])
    sampling = {"step": 3, "weights": "ema", "seed": 0, "cfg_scale": 2.0, "autoencoder": {"sha256": "d"}}
    a = protocol_of(evaluator, scores, {"xxh3": "b", "images": 20, "protocol": sampling})
    assert differences(a, copy.deepcopy(a)) == []
    b = copy.deepcopy(a)
    b["samples"]["xxh3"] = "another"
    b["samples"]["protocol"] |= {"step": 4, "weights": "master", "seed": 5}
    assert differences(a, b) == []
    b["samples"]["protocol"]["cfg_scale"] = 4.0
    b["samples"]["protocol"]["autoencoder"] = {"sha256": "e"}
    b["reference"]["images"] = 21
    b["definitions"]["precision"]["neighbours"] = 5
    del b["extractor"]["weights_sha256"]
    assert differences(a, b) == [
        f"extractor.weights_sha256: {'0' * 64} / absent",
        "reference.images: 20 / 21",
        "samples.protocol.cfg_scale: 2.0 / 4.0",
        "samples.protocol.autoencoder.sha256: d / e",
        "definitions.precision.neighbours: 3 / 5",
    ]
    assert differences(a, a | {"samples": {"xxh3": "b", "images": 20, "protocol": None}})[0].startswith(
        "samples.protocol.cfg_scale: 2.0 / absent"
    )
