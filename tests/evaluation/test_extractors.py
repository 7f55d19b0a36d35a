"""Features: Inception's are torch-fidelity's; files that are not its weights are refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from dit_scale.errors import InputError
from dit_scale.evaluation import load_extractor
from dit_scale.evaluation.inception import resize_like_tensorflow
from tests.evaluation.small import pictures, random_inception_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_inception_weights(tmp_path_factory.mktemp("weights") / "inception.pth")


def test_inceptions_features_are_torch_fidelitys(weights: Path) -> None:
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    spatial = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[-1]))
    images = torch.from_numpy(pictures(range(2), 48))
    pool, logits = theirs(images.permute(0, 3, 1, 2).contiguous())
    ours = load_extractor(None, weights, "cpu")(images)
    torch.testing.assert_close(ours.pool, pool, rtol=1e-4, atol=1e-4 * pool.abs().max().item())
    torch.testing.assert_close(ours.logits, logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
    # ADM flattens TensorFlow's layout: row, column, channel.
    expected = spatial[0][:, :7].permute(0, 2, 3, 1).reshape(2, 2023)
    torch.testing.assert_close(ours.spatial, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert pool.std() > 0.1


@pytest.mark.parametrize("shape", [(64, 64), (299, 299), (400, 350)])
def test_images_are_resized_as_tensorflow_1_does(shape: tuple[int, int]) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *shape))).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    torch.testing.assert_close(resize_like_tensorflow(images, 299), expected, rtol=1e-6, atol=1e-3)


def test_efficientnet_brings_its_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    extractor = load_extractor(None, None, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    features = extractor(torch.from_numpy(pictures(range(3), 64)))
    assert features.pool.shape == (3, 1280)
    assert features.spatial is None
    assert features.logits is None
    assert extractor.identity()["name"] == "efficientnet-lite0"
    assert len(extractor.identity()["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "has_weights", "sentence"),
    [
        ("inception", False, "give --weights with a copy of"),
        ("incepton", False, "did you mean 'inception'"),
        ("efficientnet-lite0", True, "leave out --weights"),
    ],
)
def test_features_that_cannot_be_had_are_refused(name: str, has_weights: bool, sentence: str, weights: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        load_extractor(name, weights if has_weights else None, "cpu")


class Stranger:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this pickle was run",)


@pytest.mark.parametrize("kind", ["absent", "stranger", "text", "cut short", "another network", "another shape"])
def test_what_is_not_inceptions_weights_is_refused(
    kind: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    if kind == "stranger":
        path.write_bytes(pickle.dumps(Stranger()))
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "cut short":
        path.write_bytes(weights.read_bytes()[:-100_000])
    elif kind == "another network":
        torch.save({"y_embedder.weight": torch.zeros(3)}, path)
    elif kind == "another shape":
        torch.save(torch.load(weights, weights_only=True) | {"fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(InputError, match=r"weights '.*weights.pth' (are|hold) ") as caught:
        load_extractor("inception", path, "cpu")
    assert "\n" not in str(caught.value)
    assert "this pickle was run" not in capsys.readouterr().out
