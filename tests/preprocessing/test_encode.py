"""Encoding: the same bytes for any number of encoders and any history, and nothing half-written taken for whole."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dit_scale.autoencoder import FILE_NAME as AUTOENCODER
from dit_scale.autoencoder import from_uint8, load_autoencoder
from dit_scale.config import EncodeConfig, load_config
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.manifest import Manifest, read_manifest
from dit_scale.data.shards import damage_of
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.latents import sample_latent
from preprocessing.decoding import decode_image
from preprocessing.encode import encode, encode_part
from preprocessing.planning import prepare
from preprocessing.sources import Place
from tests.preprocessing.images import draw_tree, picture, write_tar

ROOT = Path(__file__).parents[2]
COUNTS = {"ant": 13, "bee": 9, "cow": 15}
PCA = ["autoencoder.name=pca", "autoencoder.pca_channels=6"]
FITTED = ["autoencoder.name=fitted", "autoencoder.fit_channels=6", "autoencoder.fit_steps=4"]
COMMON = ["image_size=32", "shard_records=8", "batch_size=3", "decode_workers=0"]


def _settings(source: Path, output: Path, *more: str) -> list[str]:
    return [f"source.path={source}", f"output={output}", *COMMON, *more]


def _encode(source: Path, output: Path, *more: str) -> Manifest:
    manifest = encode(load_config(EncodeConfig, None, _settings(source, output, *more)))
    assert manifest is not None
    return manifest


def _start(settings: list[str], **environment: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.preprocessing.run_encode", *settings],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stderr=subprocess.PIPE,
        text=True,
    )


def _shard_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file that a reader uses."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "encode.jsonl"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tree(tmp_path_factory.mktemp("images"), COUNTS)


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kl") / "kl"
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=4, **blocks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(source: Path, kl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that one process encoded with the KL autoencoder, without a hitch."""
    folder = tmp_path_factory.mktemp("reference") / "shards"
    _encode(source, folder, f"autoencoder.name={kl}")
    return folder


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
    _encode(source, tmp_path / "kept", f"autoencoder.name={kl}", "keep_crops=true")
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
    kept, plain = (_shard_bytes(folder) for folder in (tmp_path / "kept", reference))
    assert {name for name in kept if name not in plain} == {f"shard-{i:06d}.crops" for i in range(5)}
    assert {name for name in plain if plain[name] == kept[name]} >= {f"shard-{i:06d}.tar" for i in range(5)}
    assert b"crop" not in plain["manifest.json"].replace(b"adm-centre-crop", b"")
    assert all("crop" not in np.load(reference / f"shard-{i:06d}.npy").dtype.names for i in range(5))
    assert "keep_crops" not in (reference / "encoding" / "plan.json").read_text()
    assert "crops" not in (reference / "encoding" / "shard-000000.json").read_text()


def test_statistics_describe_the_latents(source: Path, tmp_path: Path) -> None:
    manifest = _encode(source, tmp_path / "out", *PCA)
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
    _encode(source, tmp_path / "out", f"autoencoder.name={kl}")
    assert _shard_bytes(tmp_path / "out") == _shard_bytes(reference)


@pytest.mark.parametrize(
    "codec", [PCA, [*PCA, "keep_crops=true"], FITTED], ids=["latents", "with crops", "fitted codec"]
)
def test_three_workers_that_decode_in_pools_make_the_same_bytes(source: Path, tmp_path: Path, codec: list[str]) -> None:
    _encode(source, tmp_path / "one", *codec)
    _encode(source, tmp_path / "three", *codec, "workers=3", "decode_workers=1")
    assert (tmp_path / "three" / AUTOENCODER).read_bytes() == (tmp_path / "one" / AUTOENCODER).read_bytes()
    assert _shard_bytes(tmp_path / "three") == _shard_bytes(tmp_path / "one")
    log = [json.loads(line) for line in (tmp_path / "three" / "encode.jsonl").read_text().splitlines()]
    assert {line["shard"] for line in log} == {f"shard-{i:06d}.tar" for i in range(5)}
    assert {line["rank"] for line in log} <= {0, 1, 2}  # a worker that starts late may find nothing left to do


def test_ranks_of_a_launcher_make_the_same_bytes(source: Path, tmp_path: Path) -> None:
    _encode(source, tmp_path / "one", *PCA)
    settings = _settings(source, tmp_path / "two", *PCA)
    ranks = [
        _start(settings, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, GROUP_RANK=0) for rank in (1, 0)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert _shard_bytes(tmp_path / "two") == _shard_bytes(tmp_path / "one")


def test_a_killed_encode_goes_on_and_makes_the_same_bytes(tmp_path: Path) -> None:
    source, output = draw_tree(tmp_path / "images", {"a": 200, "b": 200}), tmp_path / "out"
    small_shards = [*PCA, "shard_records=2", "keep_crops=true"]
    _encode(source, tmp_path / "unharmed", *small_shards)
    process = _start(_settings(source, output, *small_shards, "workers=2"))
    deadline = time.monotonic() + 120
    while not list(output.glob("encoding/shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while any(_is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_is_alive(child) for child in children), "an encoder outlived its parent"

    finished = {path.stem: (output / f"{path.stem}.tar").stat() for path in output.glob("encoding/shard-*.json")}
    assert 0 < len(finished) < 200
    with pytest.raises(InputError, match=r"its encoding is unfinished"):
        read_manifest(output)
    _encode(source, output, *small_shards)
    assert _shard_bytes(output) == _shard_bytes(tmp_path / "unharmed")
    for name, before in finished.items():
        assert (output / f"{name}.tar").stat().st_ino == before.st_ino, f"{name} was finished and made again"
    assert not list(output.rglob("*.tmp"))


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_was_lost_is_made_again_and_nothing_else(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    _encode(source, output, *PCA, "keep_crops=true")
    whole = _shard_bytes(output)
    (output / "shard-000004.crops").write_bytes(whole["shard-000004.crops"][:-1])
    (output / "shard-000001.tar").unlink()
    (output / "shard-000002.tar").write_bytes(whole["shard-000002.tar"][:-1])
    (output / "shard-000003.npy").unlink()
    killed = subprocess.Popen(["true"])
    killed.wait()
    (output / f".shard-000001.tar.{socket.gethostname()}-{killed.pid}.tmp").write_bytes(b"half a shard")
    (output / f".shard-000001.crops.{socket.gethostname()}-{killed.pid}.tmp").write_bytes(b"half a crop")
    (output / "encode.jsonl").unlink()
    _encode(source, output, *PCA, "keep_crops=true")
    assert _shard_bytes(output) == whole
    again = [json.loads(line)["shard"] for line in (output / "encode.jsonl").read_text().splitlines()]
    assert again == [f"shard-{number:06d}.tar" for number in (1, 2, 3, 4)]
    assert not list(output.rglob("*.tmp"))


def test_a_fit_does_not_depend_on_who_decodes(source: Path, tmp_path: Path) -> None:
    one = _encode(source, tmp_path / "one", *PCA)
    two = _encode(source, tmp_path / "two", *PCA, "decode_workers=2")
    assert one.fingerprint == two.fingerprint


def test_tars_of_images_give_the_same_moments(source: Path, tmp_path: Path) -> None:
    samples = [(f"{i:03d}", picture(i), str(i % 4)) for i in range(10)]
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", samples[:6])
    write_tar(tmp_path / "tars" / "b.tar", samples[6:])
    (tmp_path / "tree" / "c").mkdir(parents=True)
    for key, image, _ in samples:
        image.save(tmp_path / "tree" / "c" / f"{key}.png")
    _encode(tmp_path / "tars", tmp_path / "from-tars", *PCA)
    _encode(tmp_path / "tree", tmp_path / "from-tree", *PCA)
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
        _encode(source, output, *PCA)
    first = (output / "shard-000000.tar").stat().st_ino
    with pytest.raises(InputError, match=r"image 'b/004.jpg' cannot be decoded .* 2 rejected images .* max_rejected=1"):
        _encode(source, output, *PCA, "max_rejected=1")
    manifest = _encode(source, output, *PCA, "max_rejected=2")
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
    _encode(source, tmp_path / "out", *PCA)
    whole = _shard_bytes(tmp_path / "out")
    with pytest.raises(InputError, match=named):
        _encode(source, tmp_path / "out", *PCA, change)
    assert _shard_bytes(tmp_path / "out") == whole


def test_crops_cannot_be_left_out_halfway(source: Path, tmp_path: Path) -> None:
    _encode(source, tmp_path / "out", *PCA, "keep_crops=true")
    with pytest.raises(InputError, match=r"begun with keep_crops=true, now it is false; set it back"):
        _encode(source, tmp_path / "out", *PCA)


def test_other_images_or_another_autoencoder_of_the_same_name_are_refused(
    source: Path, kl: Path, reference: Path, tmp_path: Path
) -> None:
    _encode(source, tmp_path / "out", *PCA)
    with pytest.raises(InputError, match=r"source.images=37, now it is 2"):
        _encode(draw_tree(tmp_path / "others", {"x": 2}), tmp_path / "out", *PCA)
    (tmp_path / "kl").mkdir()
    torch.manual_seed(1)
    other = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(kl))
    other.save_pretrained(tmp_path / "kl")
    with pytest.raises(InputError, match=r"identity.sha256="):
        _encode(source, reference, f"autoencoder.name={tmp_path / 'kl'}")


def test_mistakes_get_one_sentence(source: Path, kl: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image_size=36 is not divisible by autoencoder.pca_patch_size=8"):
        _encode(source, tmp_path / "a", *PCA, "image_size=36")
    with pytest.raises(InputError, match=r"image_size=33 is not divisible by 2"):
        _encode(source, tmp_path / "b", f"autoencoder.name={kl}", "image_size=33")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"output folder '.*file.*' cannot be written to"):
        _encode(source, tmp_path / "file" / "out", *PCA)
    _encode(source, tmp_path / "c", *PCA)
    (tmp_path / "c" / "encoding" / "plan.json").unlink()
    with pytest.raises(InputError, match=r"holds shards without the plan"):
        _encode(source, tmp_path / "c", *PCA)


def test_an_error_in_a_worker_ends_all_and_is_the_users_to_read(tmp_path: Path) -> None:
    source = draw_tree(tmp_path / "images", {"a": 10, "b": 10})
    (source / "b" / "008.jpg").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"image 'b/008.jpg' cannot be decoded"):
        _encode(source, tmp_path / "out", *PCA, "workers=2")


def _array(source: Path, output: Path, element: int, *more: str, count: int = 3) -> "subprocess.Popen[str]":
    variables = {"ID": element + 1, "MIN": 1, "MAX": count, "STEP": 1, "COUNT": count}
    environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in variables.items()}
    return _start(_settings(source, output, *PCA, *more), **environment)


def test_elements_of_an_array_share_the_work_and_the_last_writes_the_manifest(source: Path, tmp_path: Path) -> None:
    _encode(source, tmp_path / "one", *PCA)
    elements = [_array(source, tmp_path / "array", element) for element in range(3)]
    for process in elements:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert _shard_bytes(tmp_path / "array") == _shard_bytes(tmp_path / "one")


def test_an_element_does_not_wait_for_the_others_nor_leave_their_work_undone(source: Path, tmp_path: Path) -> None:
    """Alone it makes every shard that nobody is at; one that somebody is at it leaves to them."""
    _encode(source, tmp_path / "one", *PCA)
    output = tmp_path / "array"
    output.mkdir()
    elsewhere = output / ".shard-000003.tar.another-node-17.tmp"
    elsewhere.write_bytes(b"half a shard")
    _, errors = _array(source, output, 1).communicate(timeout=120)
    assert "1 shards are being made by other elements of the array" in errors
    assert sorted(path.name for path in output.glob("*.tar")) == [f"shard-{i:06d}.tar" for i in (0, 1, 2, 4)]
    os.utime(elsewhere, (0, 0))  # now it has not grown for long
    _array(source, output, 2).communicate(timeout=120)
    assert _shard_bytes(output) == _shard_bytes(tmp_path / "one")


@pytest.mark.parametrize("ending", ["tar", "crops", "npy", "json"])
def test_whoever_is_overtaken_at_the_last_moment_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Another worker finishes the same shard, and clears up, while this one has a file of it written but not named."""
    first, second = tmp_path / "first", tmp_path / "second"
    _encode(source, first, *PCA, "keep_crops=true")
    fsync, overtaken = os.fsync, []

    def fsync_late(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.startswith(f".shard-000001.{ending}.") and not overtaken:
            overtaken.append(path)
            for name in (*(f"shard-000001.{kind}" for kind in ("tar", "crops", "npy")), "encoding/shard-000001.json"):
                shutil.copy(first / name, second / name)
            path.unlink()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_late)
    _encode(source, second, *PCA, "keep_crops=true")
    assert overtaken and _shard_bytes(second) == _shard_bytes(first)


def test_two_encodings_of_one_folder_end_alike(source: Path, tmp_path: Path) -> None:
    _encode(source, tmp_path / "one", *PCA)
    both = [_start(_settings(source, tmp_path / "two", *PCA)) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert _shard_bytes(tmp_path / "two") == _shard_bytes(tmp_path / "one")


def test_scale_and_shift_can_be_measured(source: Path, kl: Path, tmp_path: Path) -> None:
    manifest = _encode(source, tmp_path / "out", f"autoencoder.name={kl}", "autoencoder.measure_scale=true")
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
    manifest = _encode(source, tmp_path / "out", f"autoencoder.name={tmp_path / 'vae'}")
    assert manifest.latents.channels == channels
    assert manifest.latents.scale == pytest.approx([1 / std for std in statistics["latents_std"]])
    assert manifest.latents.shift == pytest.approx(statistics["latents_mean"])
    moments, _ = LatentDataset.open(tmp_path / "out").read(np.arange(3), np.zeros(3, bool))
    assert moments.shape == (3, 2 * channels, 16, 16)


def test_an_image_that_was_mended_is_not_rejected_any_more(tmp_path: Path) -> None:
    """Where several encoders reject more than is allowed together, each having stayed within the limit."""
    source, output = draw_tree(tmp_path / "images", {"a": 32}), tmp_path / "out"
    names = ("a/000.jpg", "a/008.jpg")
    whole = {name: (source / name).read_bytes() for name in names}
    for name in names:
        (source / name).write_bytes(b"")
    for element in (1, 3):
        _array(source, output, element, "max_rejected=2", "shard_records=8", count=4).communicate(timeout=120)
    for name in names:
        (source / name).write_bytes(whole[name])
    (output / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"image 'a/000.jpg' cannot be decoded .* 2 rejected images .* max_rejected=1"):
        _encode(source, output, *PCA, "max_rejected=1")
    manifest = _encode(source, output, *PCA, "max_rejected=1")
    assert (manifest.num_records, manifest.rejected) == (32, 0)


def test_an_end_waits_for_no_decoder_that_hangs_in_storage(tmp_path: Path) -> None:
    """Two images that are none end it, while what would come next is read from a pipe into which nobody writes."""
    source = draw_tree(tmp_path / "images", {"ant": 24})
    settings = _settings(source, tmp_path / "shards", *PCA, "decode_workers=1", "batch_size=8", "shard_records=24")
    config = load_config(EncodeConfig, None, [*settings, "max_rejected=0"])
    job = prepare(config)
    paths = [job.source.place(index).path for index in range(24)]
    for path in paths[:2]:
        path.write_bytes(b"no image")
    paths[12].unlink()
    os.mkfifo(paths[12])
    said: list[str] = []

    def encode_it() -> None:
        try:
            encode_part(config, World())
        except InputError as error:
            said.append(str(error))

    thread = threading.Thread(target=encode_it, daemon=True)
    thread.start()
    thread.join(600.0)
    assert not thread.is_alive(), "it waits for the decoder"
    assert "max_rejected" in said[0]
