"""Autoencoders: moments in, images out, kept as one file that identifies itself."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit_scale.autoencoder import (
    FILE_NAME,
    PCACodec,
    copy_decoder,
    from_uint8,
    load_autoencoder,
    save_autoencoder,
    to_uint8,
)
from dit_scale.errors import InputError
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE
from tests.preprocessing.images import batch

TINY_KL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
TINY_TINY = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (1, 1, 1),
}


def _images(numbers: range, size: int = 64) -> torch.Tensor:
    return torch.from_numpy(batch(numbers, size))


def _saved(kind: str, folder: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    getattr(diffusers, kind)(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec() -> PCACodec:
    return PCACodec.fit([_images(range(40))], patch_size=8, channels=16)


def test_uint8_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-1.0, -1.5, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]


def test_pca_restores_images_that_it_was_not_fitted_on(codec: PCACodec) -> None:
    images = from_uint8(_images(range(100, 110)))
    moments = codec.encode(images)
    assert moments.shape == (10, 32, 8, 8)
    assert moments.dtype == torch.float32
    raw, log_variance = moments.chunk(2, dim=1)
    assert (log_variance == NO_VARIANCE_LOG_VARIANCE).all()
    error = (codec.decode(raw) - images).square().mean()
    assert 10 * torch.log10(4.0 / error) > 28.0  # PSNR in dB


def test_pca_latents_have_unit_rms(codec: PCACodec) -> None:
    raw = codec.encode(from_uint8(_images(range(40)))).chunk(2, dim=1)[0]
    assert len(codec.scale) == 1
    assert (raw * codec.scale[0]).square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-5)


def test_pca_does_not_depend_on_batches_order_or_threads(codec: PCACodec) -> None:
    images = _images(range(40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        parts = images.flip(0).split(7)
        again = PCACodec.fit(parts, patch_size=8, channels=16)
        alone = torch.cat([again.encode(from_uint8(image[None])) for image in images])
    finally:
        torch.set_num_threads(threads)
    assert again.identity == codec.identity
    assert torch.equal(alone.half(), codec.encode(from_uint8(images)).half())


def test_pca_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(InputError, match=r"pca_channels=193 is above 192"):
        PCACodec.fit([], 8, 193)
    with pytest.raises(InputError, match=r"one and the same colour"):
        PCACodec.fit([torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)], 8, 4)


def test_an_autoencoder_is_kept_as_one_file(codec: PCACodec, tmp_path: Path) -> None:
    save_autoencoder(codec, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    images = from_uint8(_images(range(3)))
    for again in (load_autoencoder(codec.identity, folder=tmp_path), load_autoencoder(str(tmp_path))):
        assert again.identity == codec.identity
        assert again.scale == codec.scale
        assert torch.equal(again.encode(images), codec.encode(images))


def test_a_copy_decodes_without_the_original(codec: PCACodec, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    save_autoencoder(codec, tmp_path / "shards")
    for _ in range(2):
        copy_decoder(codec.identity, tmp_path / "shards", tmp_path / "run" / "autoencoder")
    shutil.rmtree(tmp_path / "shards")
    again = load_autoencoder(codec.identity, folder=tmp_path / "run" / "autoencoder")
    raw = torch.randn(2, 16, 4, 4)
    assert torch.equal(again.decode(raw), codec.decode(raw))


def test_the_file_of_another_autoencoder_is_refused(codec: PCACodec, tmp_path: Path) -> None:
    save_autoencoder(PCACodec.fit([_images(range(5))], 8, 16), tmp_path)
    with pytest.raises(InputError, match=r"put back the file that belongs to these latents"):
        load_autoencoder(codec.identity, folder=tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"junk")
    with pytest.raises(InputError, match=r"is not a whole autoencoder file"):
        load_autoencoder(codec.identity, folder=tmp_path)
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(InputError, match=r"autoencoder.safetensors' is missing"):
        load_autoencoder(codec.identity, folder=tmp_path)


def test_kl_gives_the_moments_of_its_posterior(tmp_path: Path) -> None:
    folder = _saved("AutoencoderKL", tmp_path / "my-kl", **TINY_KL)
    autoencoder = load_autoencoder(str(folder))
    reference = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    images = from_uint8(_images(range(2), 32))
    with torch.no_grad():
        posterior = reference.encode(images).latent_dist
        decoded = reference.decode(posterior.mean).sample
    moments = autoencoder.encode(images)
    assert moments.shape == (2, 8, 16, 16)
    torch.testing.assert_close(moments, torch.cat((posterior.mean, posterior.logvar), dim=1))
    torch.testing.assert_close(autoencoder.decode(moments[:, :4]), decoded)
    assert (autoencoder.channels, autoencoder.downsampling, autoencoder.scale) == (4, 2, (0.18215,))
    assert autoencoder.identity["name"] == "my-kl"  # and not its path
    assert autoencoder.identity["kind"] == "AutoencoderKL"


def test_tiny_has_no_variance(tmp_path: Path) -> None:
    autoencoder = load_autoencoder(str(_saved("AutoencoderTiny", tmp_path / "tiny", **TINY_TINY)))
    images = from_uint8(_images(range(2), 32))
    moments = autoencoder.encode(images)
    assert moments.shape == (2, 8, 8, 8)
    assert (moments[:, 4:] == NO_VARIANCE_LOG_VARIANCE).all()
    assert autoencoder.decode(moments[:, :4]).shape == images.shape
    assert (autoencoder.downsampling, autoencoder.scale, autoencoder.shift) == (4, (1.0,), (0.0,))


@pytest.mark.parametrize(("kind", "settings"), [("AutoencoderKL", TINY_KL), ("AutoencoderTiny", TINY_TINY)])
def test_convolutional_autoencoders_are_kept_as_one_file_too(kind: str, settings: Any, tmp_path: Path) -> None:
    original = load_autoencoder(str(_saved(kind, tmp_path / "hub", **settings)))
    (tmp_path / "kept").mkdir()
    save_autoencoder(original, tmp_path / "kept")
    shutil.rmtree(tmp_path / "hub")
    again = load_autoencoder(original.identity, folder=tmp_path / "kept")
    images = from_uint8(_images(range(2), 32))
    assert torch.equal(again.encode(images), original.encode(images))
    reduced = load_autoencoder(original.identity, folder=tmp_path / "kept", precision="bf16").encode(images)
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, original.encode(images), atol=0.05, rtol=0.05)


HUB_FILE = "diffusion_pytorch_model.safetensors"


def _rewritten(folder: Path, weights: dict[str, torch.Tensor], **settings: Any) -> Path:
    """Replace the weights of a folder, and some of its settings."""
    save_file(weights, folder / HUB_FILE, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("no decoder", r"\(missing: decoder\.conv_in\.bias, decoder\.conv_in\.weight, .* and \d+ more\)"),
        ("no convolution", r"\(missing: encoder\.conv_in\.bias, encoder\.conv_in\.weight\)"),
        ("left over", r"\(not in this model: loss\.logvar\)"),
        ("another shape", r"\(of another shape: encoder\.conv_in\.weight\)"),
        ("all three", r"\(missing: encoder.*; of another shape: decoder.*; not in this model: loss\.logvar\)"),
        ("not a number", r"\(NaN or infinite, or in no file: encoder\.conv_in\.bias\)"),
    ],
)
def test_a_folder_whose_weights_are_not_the_models_is_refused_by_name(
    change: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = _saved("AutoencoderKL", tmp_path / "kl", **TINY_KL)
    weights = load_file(folder / HUB_FILE)
    if change == "no decoder":
        weights = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
    if change == "no convolution":
        weights = {name: value for name, value in weights.items() if not name.startswith("encoder.conv_in.")}
    if change in ("left over", "all three"):
        weights["loss.logvar"] = torch.zeros(1)
    if change == "another shape":
        weights["encoder.conv_in.weight"] = torch.zeros(8, 3, 5, 5)
    if change == "all three":
        del weights["encoder.conv_in.weight"]
        weights["decoder.conv_in.weight"] = torch.zeros(16, 4, 5, 5)
    if change == "not a number":
        weights["encoder.conv_in.bias"][0] = torch.nan
    _rewritten(folder, weights)
    with pytest.raises(InputError, match=rf"autoencoder '.*kl' does not fit its own config\.json {sentence}; copy the"):
        load_autoencoder(str(folder))
    assert "newly initialized" not in capfd.readouterr().err  # diffusers' own list, of all names


def test_an_index_that_names_a_weight_which_no_shard_holds_is_refused(tmp_path: Path) -> None:
    """diffusers believes the index: it calls nothing missing, and leaves what the memory held."""
    torch.manual_seed(0)
    diffusers.AutoencoderKL(**TINY_KL).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = json.loads((tmp_path / f"{HUB_FILE}.index.json").read_text())["weight_map"]
    assert load_autoencoder(str(tmp_path)).channels == 4
    shard = tmp_path / shards["encoder.conv_in.weight"]
    weights = load_file(shard)
    del weights["encoder.conv_in.weight"]
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"\(NaN or infinite, or in no file: encoder\.conv_in\.weight\)"):
        load_autoencoder(str(tmp_path))
    assert not torch.are_deterministic_algorithms_enabled()


_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Of attention, in the autoencoders that were published first."""


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_published_autoencoders_with_deprecated_names_load(form: str, tmp_path: Path) -> None:
    folder = _saved("AutoencoderKL", tmp_path / "kl", **TINY_KL)
    expected = load_autoencoder(str(folder)).identity
    weights = load_file(folder / HUB_FILE)
    for new, old in _OLD_NAMES.items():
        weights = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for name, v in weights.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in weights
    if form == "safetensors":
        _rewritten(folder, weights)
    else:
        (folder / HUB_FILE).unlink()
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    assert load_autoencoder(str(folder)).identity == expected


@pytest.mark.parametrize("is_in_file", [True, False])
def test_a_convolution_that_the_configuration_turns_off_may_be_there_or_not(is_in_file: bool, tmp_path: Path) -> None:
    folder = _saved("AutoencoderKL", tmp_path / "kl", **TINY_KL)
    weights = load_file(folder / HUB_FILE)
    if not is_in_file:
        weights = {name: value for name, value in weights.items() if "quant_conv" not in name}
        with pytest.raises(InputError, match=r"missing: post_quant_conv\.bias"):
            load_autoencoder(str(_rewritten(folder, weights)))
    _rewritten(folder, weights, use_quant_conv=False, use_post_quant_conv=False)
    assert not any("quant_conv" in name for name in load_autoencoder(str(folder)).tensors())


def test_a_kept_file_that_lacks_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    save_autoencoder(load_autoencoder(str(_saved("AutoencoderKL", tmp_path / "kl", **TINY_KL))), tmp_path)
    with safe_open(tmp_path / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    weights = load_file(tmp_path / FILE_NAME)
    del weights["decoder.conv_in.bias"]
    save_file(weights, tmp_path / FILE_NAME, metadata)
    with pytest.raises(InputError, match=r"decoder\.conv_in\.bias is absent there"):
        load_autoencoder(str(tmp_path))


def test_statistics_of_channels_become_scale_and_shift(tmp_path: Path) -> None:
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 4.0, 0.5]
    folder = _saved("AutoencoderKL", tmp_path / "kl", **TINY_KL, latents_mean=mean, latents_std=std, scaling_factor=1.0)
    autoencoder = load_autoencoder(str(folder))
    assert autoencoder.shift == (0.5, -1.0, 0.0, 2.0)
    assert autoencoder.scale == (1.0, 0.5, 0.25, 2.0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scaling_factor": 0}, "has scaling_factor=0 in its config.json, where a number above 0 belongs; correct it"),
        ({"scaling_factor": -1}, "has scaling_factor=-1 in its config.json, where a number above 0 belongs"),
        ({"scaling_factor": "x"}, 'has scaling_factor="x" in its config.json, where a number above 0 belongs'),
        ({"shift_factor": [1]}, "has shift_factor=[1] in its config.json, where a number belongs"),
        (
            {"latents_mean": [0.0] * 4, "latents_std": [1, 1, 0, 1]},
            "[1, 1, 0, 1] in its config.json, where numbers above",
        ),
        ({"block_out_channels": [8]}, "cannot be built: the settings in its config.json do not fit a model; copy the"),
        ({"block_out_channels": "x"}, "cannot be built: the settings in its config.json do not fit a model"),
        ([], "config.json"),
        (3, "config.json"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(settings: Any, sentence: str, tmp_path: Path) -> None:
    folder = _saved("AutoencoderKL", tmp_path / "kl", **TINY_KL)
    path = folder / "config.json"
    is_whole = isinstance(settings, dict)
    path.write_text(json.dumps(json.loads(path.read_text()) | settings if is_whole else settings))
    with pytest.raises(InputError) as caught:
        load_autoencoder(str(folder))
    assert sentence in str(caught.value)
    assert "object" not in str(caught.value) or "JSON object" in str(caught.value)


def test_a_scale_that_is_null_is_one(tmp_path: Path) -> None:
    folder = _saved("AutoencoderKL", tmp_path / "kl", **TINY_KL)
    _rewritten(folder, load_file(folder / HUB_FILE), scaling_factor=None)
    assert load_autoencoder(str(folder)).scale == (1.0,)


@pytest.mark.parametrize("name", ["models/vae/kl", "./kl", "/nowhere/kl", "~/kl", "HERE/sd-vae", "HERE/file"])
def test_a_mistyped_folder_is_refused_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dit_scale.autoencoder.convolutional.why_out_of_reach", lambda: pytest.fail("no network for it")
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "HERE").mkdir()
    (tmp_path / "HERE" / "file").touch()
    what = "is a file, not a folder" if name.endswith("file") else "is not a folder of this machine"
    with pytest.raises(InputError, match=f"autoencoder '{name}' {what}; give the folder of a diffusers autoencoder"):
        load_autoencoder(name)


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as nobody:  # bound, but nobody listens: refused at once
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        said = r"not in the hub's cache .* the hub, http://127.* download no-one/nothing where .* by hf download$"
        with pytest.raises(InputError, match=said):
            load_autoencoder("no-one/nothing")
        _in_cache(_saved("AutoencoderKL", tmp_path / "kl", **TINY_KL), tmp_path / "models--some-one--kl")
        assert load_autoencoder("some-one/kl").identity["revision"] == _COMMIT
    assert capfd.readouterr().err == ""
    assert not caplog.messages


_COMMIT = "a" * 40


def _in_cache(folder: Path, target: Path) -> None:
    """Lay a folder down as the hub's client does."""
    (target / "refs").mkdir(parents=True)
    (target / "refs" / "main").write_text(_COMMIT)
    shutil.copytree(folder, target / "snapshots" / _COMMIT)


def test_an_image_size_that_does_not_divide_is_refused(codec: PCACodec) -> None:
    assert codec.latent_size(64) == 8
    with pytest.raises(InputError, match=r"image_size=60 is not divisible by 8"):
        codec.latent_size(60)


def test_a_name_that_cannot_be_loaded_gets_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"'no-one/nothing' cannot be loaded \(.*HF_HUB_OFFLINE is set\); .* a local fol"
    ):
        load_autoencoder("no-one/nothing")
    with pytest.raises(InputError, match=r"fitted on images by dit-scale encode.* give the folder with its autoencod"):
        load_autoencoder("pca")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match=r"is of class UNet2DModel; give one of AutoencoderKL"):
        load_autoencoder(str(tmp_path))
