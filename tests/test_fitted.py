"""The fitted codec: better than the linear one it starts from, the same wherever it is fitted, kept as one file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit_scale.autoencoder import (
    FILE_NAME,
    Autoencoder,
    FittedCodec,
    PCACodec,
    from_uint8,
    load_autoencoder,
    save_autoencoder,
    to_uint8,
)
from dit_scale.autoencoder.fitted import _linear_codec
from dit_scale.autoencoder.fitting import BATCH_IMAGES
from dit_scale.autoencoder.patches import PatchNetwork
from dit_scale.errors import InputError
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE
from tests.preprocessing.images import batch

PATCH, CHANNELS, STEPS, WIDTH = 4, 3, 60, 32


def _images(numbers: range, size: int = 32) -> Tensor:
    return torch.from_numpy(batch(numbers, size))


def _error(codec: Autoencoder, images: Tensor) -> float:
    pixels = from_uint8(images)
    return (codec.decode(codec.encode(pixels).chunk(2, dim=1)[0]) - pixels).square().mean().item()


@pytest.fixture(scope="module")
def codec() -> FittedCodec:
    return FittedCodec.fit(_images(range(64)).split(25), PATCH, CHANNELS, STEPS, WIDTH)


def test_it_begins_as_the_linear_codec() -> None:
    images = _images(range(20))
    linear = PCACodec.fit([images], PATCH, CHANNELS)
    network = PatchNetwork(PATCH, CHANNELS, 8, 1, 1).begin(
        *_linear_codec([images], PATCH, CHANNELS), torch.Generator().manual_seed(0)
    )
    pixels = from_uint8(images)
    latents = linear.encode(pixels).chunk(2, dim=1)[0]
    with torch.no_grad():
        torch.testing.assert_close(network.encode(pixels), latents * linear.scale[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(network.decode(latents * linear.scale[0]), linear.decode(latents), rtol=0, atol=1e-4)


def test_it_restores_images_better_than_the_linear_codec_also_those_it_never_saw(codec: FittedCodec) -> None:
    images = _images(range(64))
    linear = PCACodec.fit([images], PATCH, CHANNELS)
    assert _error(codec, images) < 0.7 * _error(linear, images)
    unseen = _images(range(100, 120))
    assert _error(codec, unseen) < 0.8 * _error(linear, unseen)


def test_it_tells_its_scale_and_its_psnr(codec: FittedCodec) -> None:
    images = _images(range(64))
    moments = codec.encode(from_uint8(images))
    assert moments.shape == (64, 2 * CHANNELS, 8, 8)
    mean, log_variance = moments.chunk(2, dim=1)
    assert (log_variance == NO_VARIANCE_LOG_VARIANCE).all()
    assert (mean * codec.scale[0]).square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-4)
    error = (to_uint8(codec.decode(mean)).double() - images).square().mean()
    assert codec.psnr == pytest.approx(10 * torch.log10(255.0**2 / error).item(), abs=0.01)


def test_the_fit_depends_on_images_and_their_order_alone(codec: FittedCodec) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(3)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        with torch.no_grad():
            again = FittedCodec.fit(_images(range(64)).split(64), PATCH, CHANNELS, STEPS, WIDTH)
        assert torch.get_num_threads() == 3
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    assert again.identity == codec.identity
    assert again.settings() == codec.settings()


def test_images_larger_than_what_it_looks_at_are_fitted_in_parts() -> None:
    wide = FittedCodec.fit([_images(range(BATCH_IMAGES), 48)], PATCH, CHANNELS, 1, WIDTH)
    assert wide.encode(from_uint8(_images(range(2), 48))).shape == (2, 2 * CHANNELS, 12, 12)


def test_it_is_kept_as_one_file(codec: FittedCodec, tmp_path: Path) -> None:
    save_autoencoder(codec, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    pixels = from_uint8(_images(range(3)))
    for again in (load_autoencoder(codec.identity, folder=tmp_path), load_autoencoder(str(tmp_path))):
        assert (again.identity, again.scale, again.psnr) == (codec.identity, codec.scale, codec.psnr)
        moments = again.encode(pixels)
        assert torch.equal(moments, codec.encode(pixels))
        assert torch.equal(again.decode(moments[:, :CHANNELS]), codec.decode(moments[:, :CHANNELS]))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match=rf"on {BATCH_IMAGES} images at least, and 31 can be read; give more"):
        FittedCodec.fit([_images(range(BATCH_IMAGES - 1))], PATCH, CHANNELS, 1, WIDTH)
    with pytest.raises(InputError, match=r"is fitted on images by dit-scale encode"):
        load_autoencoder("fitted")
