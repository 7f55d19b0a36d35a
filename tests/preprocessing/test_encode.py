"""Encoding: what shards hold, what is refused, and nothing half-written taken for whole."""

import json
import socket
import subprocess
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dit_scale.autoencoder import from_uint8, load_autoencoder
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.shards import damage_of
from dit_scale.errors import InputError
from dit_scale.latents import sample_latent
from preprocessing.decoding import decode_image
from preprocessing.sources import Place
from tests.preprocessing.encoding import COUNTS, PCA, encoded, shard_bytes
from tests.preprocessing.images import draw_tree, picture, write_tar


def test_records_are_the_moments_of_images_and_mirror_images(source: Path, reference: Path) -> None:
    dataset = LatentDataset.open(reference)
    manifest = dataset.manifest
    assert [shard.records for shard in manifest.shards] == [8, 8, 8, 8, 5]
    assert manifest.class_names == tuple(COUNTS)
    assert manifest.latents.scale == (0.18215,)
    plain, labels = dataset.read(np.arange(37), np.zeros(37, bool))
    mirrored, _ = dataset.read(np.arange(37), np.ones(37, bool))
    assert labels.tolist() == [0] * 13 + [1] * 9 + [2] * 15

    autoencoder = load_autoencoder(manifest.autoencoder, folder=reference)
    for i, name in ((0, "ant/000.jpg"), (14, "bee/001.png"), (36, "cow/014.jpg")):
        image = decode_image(Place(source / name, 0, -1), 32)
        assert isinstance(image, np.ndarray)
        pixels = from_uint8(torch.tensor(image)[None].movedim(-1, 1))
        torch.testing.assert_close(plain[i].float(), autoencoder.encode(pixels)[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(mirrored[i].float(), autoencoder.encode(pixels.flip(-1))[0], atol=2e-3, rtol=2e-3)
    assert all(damage_of(reference, shard) is None for shard in manifest.shards)


def test_crops_are_the_images_that_became_the_latents(source: Path, kl: Path, reference: Path, tmp_path: Path) -> None:
    encoded(source, tmp_path / "kept", f"autoencoder.name={kl}", "keep_crops=true")
    dataset = LatentDataset.open(tmp_path / "kept", with_crops=True)
    autoencoder = load_autoencoder(dataset.manifest.autoencoder, folder=tmp_path / "kept")
    for flipped in (False, True):
        everything = np.arange(37), np.full(37, flipped)
        (moments, _), (crops, damaged) = dataset.read(*everything), dataset.read_crops(*everything)
        assert not damaged
        torch.testing.assert_close(moments.float(), autoencoder.encode(from_uint8(crops)), atol=2e-3, rtol=2e-3)
    names = [dataset.manifest.class_names[label] for label in dataset.folders[0].labels]
    image = decode_image(Place(source / names[36] / "014.jpg", 0, -1), 32)
    assert np.array_equal(crops[36].numpy().transpose(1, 2, 0)[:, ::-1], image)
    # Without them, folders are what they were.
    kept, plain = (shard_bytes(folder) for folder in (tmp_path / "kept", reference))
    assert {name for name in kept if name not in plain} == {f"shard-{i:06d}.crops" for i in range(5)}
    assert {name for name in plain if plain[name] == kept[name]} >= {f"shard-{i:06d}.tar" for i in range(5)}
    assert b"crop" not in plain["manifest.json"].replace(b"adm-centre-crop", b"")
    assert all("crop" not in np.load(reference / f"shard-{i:06d}.npy").dtype.names for i in range(5))
    assert "keep_crops" not in (reference / "encoding" / "plan.json").read_text()
    assert "crops" not in (reference / "encoding" / "shard-000000.json").read_text()


def test_statistics_describe_the_latents(source: Path, tmp_path: Path) -> None:
    manifest = encoded(source, tmp_path / "out", *PCA)
    dataset = LatentDataset.open(tmp_path / "out")
    moments = torch.cat([dataset.read(np.arange(37), np.full(37, mirror))[0] for mirror in (False, True)])
    raw = moments[:, :6].double()
    assert manifest.statistics.count == 74
    torch.testing.assert_close(torch.tensor(manifest.statistics.mean).double(), raw.mean((0, 2, 3)))
    expected_std = raw.var((0, 2, 3), correction=0).sqrt()
    torch.testing.assert_close(torch.tensor(manifest.statistics.std).double(), expected_std)


def test_the_bytes_do_not_depend_on_the_callers_threads(
    source: Path, kl: Path, reference: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(4)
    encoded(source, tmp_path / "out", f"autoencoder.name={kl}")
    assert shard_bytes(tmp_path / "out") == shard_bytes(reference)


def test_what_was_lost_is_made_again_and_nothing_else(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    encoded(source, output, *PCA, "keep_crops=true")
    whole = shard_bytes(output)
    (output / "shard-000004.crops").write_bytes(whole["shard-000004.crops"][:-1])
    (output / "shard-000001.tar").unlink()
    (output / "shard-000002.tar").write_bytes(whole["shard-000002.tar"][:-1])
    (output / "shard-000003.npy").unlink()
    killed = subprocess.Popen(["true"])
    killed.wait()
    (output / f".shard-000001.tar.{socket.gethostname()}-{killed.pid}.tmp").write_bytes(b"half a shard")
    (output / f".shard-000001.crops.{socket.gethostname()}-{killed.pid}.tmp").write_bytes(b"half a crop")
    (output / "encode.jsonl").unlink()
    encoded(source, output, *PCA, "keep_crops=true")
    assert shard_bytes(output) == whole
    again = [json.loads(line)["shard"] for line in (output / "encode.jsonl").read_text().splitlines()]
    assert again == [f"shard-{number:06d}.tar" for number in (1, 2, 3, 4)]
    assert not list(output.rglob("*.tmp"))


def test_tars_of_images_give_the_same_moments(source: Path, tmp_path: Path) -> None:
    samples = [(f"{i:03d}", picture(i), str(i % 4)) for i in range(10)]
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", samples[:6])
    write_tar(tmp_path / "tars" / "b.tar", samples[6:])
    (tmp_path / "tree" / "c").mkdir(parents=True)
    for key, image, _ in samples:
        image.save(tmp_path / "tree" / "c" / f"{key}.png")
    encoded(tmp_path / "tars", tmp_path / "from-tars", *PCA)
    encoded(tmp_path / "tree", tmp_path / "from-tree", *PCA)
    tars, tree = (LatentDataset.open(tmp_path / name) for name in ("from-tars", "from-tree"))
    everything = np.arange(10), np.zeros(10, bool)
    assert torch.equal(tars.read(*everything)[0], tree.read(*everything)[0])
    assert tars.read(*everything)[1].tolist() == [i % 4 for i in range(10)]


def test_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    source = draw_tree(tmp_path / "images", {"a": 12, "b": 12})
    for name in ("a/009.png", "b/004.jpg"):
        (source / name).write_bytes(b"not an image")
    output = tmp_path / "out"
    with pytest.raises(InputError, match=r"image 'a/009.png' cannot be decoded .* max_rejected=0"):
        encoded(source, output, *PCA)
    first = (output / "shard-000000.tar").stat().st_ino
    with pytest.raises(InputError, match=r"image 'b/004.jpg' cannot be decoded .* 2 rejected images .* max_rejected=1"):
        encoded(source, output, *PCA, "max_rejected=1")
    manifest = encoded(source, output, *PCA, "max_rejected=2")
    assert (output / "shard-000000.tar").stat().st_ino == first
    assert (manifest.num_records, manifest.rejected) == (22, 2)
    assert [shard.records for shard in manifest.shards] == [8, 7, 7]
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [(line["source_index"], line["name"]) for line in rejected] == [(9, "a/009.png"), (16, "b/004.jpg")]
    assert all("UnidentifiedImageError" in line["reason"] for line in rejected)
    keys = LatentDataset.open(output).keys(np.arange(22))
    assert keys == [f"{i:010d}" for i in range(24) if i not in (9, 16)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("image_size=64", r"image_size=32, now it is 64"),
        ("shard_records=9", r"shard_records=8, now it is 9"),
        ("mirrors=none", r'mirrors="both", now it is "none"'),
        ("keep_crops=true", r"keep_crops=false, now it is true"),
        ("autoencoder.pca_channels=5", r"autoencoder.pca_channels=6, now it is 5"),
        ("autoencoder.scale=[0.5]", r"autoencoder.scale=null, now it is \[0.5\]"),
    ],
)
def test_a_folder_with_another_plan_is_refused(source: Path, tmp_path: Path, change: str, named: str) -> None:
    encoded(source, tmp_path / "out", *PCA)
    whole = shard_bytes(tmp_path / "out")
    with pytest.raises(InputError, match=named):
        encoded(source, tmp_path / "out", *PCA, change)
    assert shard_bytes(tmp_path / "out") == whole


def test_crops_cannot_be_left_out_halfway(source: Path, tmp_path: Path) -> None:
    encoded(source, tmp_path / "out", *PCA, "keep_crops=true")
    with pytest.raises(InputError, match=r"begun with keep_crops=true, now it is false; set it back"):
        encoded(source, tmp_path / "out", *PCA)


def test_other_images_or_another_autoencoder_of_the_same_name_are_refused(
    source: Path, kl: Path, reference: Path, tmp_path: Path
) -> None:
    encoded(source, tmp_path / "out", *PCA)
    with pytest.raises(InputError, match=r"source.images=37, now it is 2"):
        encoded(draw_tree(tmp_path / "others", {"x": 2}), tmp_path / "out", *PCA)
    (tmp_path / "kl").mkdir()
    torch.manual_seed(1)
    other = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(kl))
    other.save_pretrained(tmp_path / "kl")
    with pytest.raises(InputError, match=r"identity.sha256="):
        encoded(source, reference, f"autoencoder.name={tmp_path / 'kl'}")


def test_mistakes_get_one_sentence(source: Path, kl: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image_size=36 is not divisible by autoencoder.pca_patch_size=8"):
        encoded(source, tmp_path / "a", *PCA, "image_size=36")
    with pytest.raises(InputError, match=r"image_size=33 is not divisible by 2"):
        encoded(source, tmp_path / "b", f"autoencoder.name={kl}", "image_size=33")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"output folder '.*file.*' cannot be written to"):
        encoded(source, tmp_path / "file" / "out", *PCA)
    encoded(source, tmp_path / "c", *PCA)
    (tmp_path / "c" / "encoding" / "plan.json").unlink()
    with pytest.raises(InputError, match=r"holds shards without the plan"):
        encoded(source, tmp_path / "c", *PCA)


def test_scale_and_shift_can_be_measured(source: Path, kl: Path, tmp_path: Path) -> None:
    manifest = encoded(source, tmp_path / "out", f"autoencoder.name={kl}", "autoencoder.measure_scale=true")
    dataset = LatentDataset.open(tmp_path / "out")
    moments, _ = dataset.read(np.arange(37), np.zeros(37, bool))
    noise = torch.randn(37, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    latent = sample_latent(moments, noise, manifest.latents)
    assert len(manifest.latents.scale) == len(manifest.latents.shift) == 4
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0.0)
    torch.testing.assert_close(latent.std((0, 2, 3)), torch.ones(4), atol=0.05, rtol=0.0)


@pytest.mark.parametrize("channels", [16, 32])
def test_autoencoders_of_many_channels(source: Path, tmp_path: Path, channels: int) -> None:
    """Also with the scale and shift, for each channel, that a model's configuration brings."""
    statistics = {"latents_mean": [0.1] * channels, "latents_std": [0.5 + 0.01 * i for i in range(channels)]}
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=1.0,
        **statistics,
    )
    model.save_pretrained(tmp_path / "vae")
    manifest = encoded(source, tmp_path / "out", f"autoencoder.name={tmp_path / 'vae'}")
    assert manifest.latents.channels == channels
    assert manifest.latents.scale == pytest.approx([1 / std for std in statistics["latents_std"]])
    assert manifest.latents.shift == pytest.approx(statistics["latents_mean"])
    moments, _ = LatentDataset.open(tmp_path / "out").read(np.arange(3), np.zeros(3, bool))
    assert moments.shape == (3, 2 * channels, 16, 16)
