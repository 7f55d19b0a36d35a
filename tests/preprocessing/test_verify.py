"""`dit-scale verify` as a user runs it: names each damaged shard, and makes it again."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dit_scale.cli import main
from dit_scale.data.dataset import LatentDataset
from dit_scale.errors import InputError
from tests.end_to_end.conftest import draw_images, encode_settings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("verify") / "images")


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("verify") / "shards"
    main(["encode", "quickstart-encode", *encode_settings(images, output), "keep_crops=true"])
    return output


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "shards")


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 16
    path.write_bytes(content)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".jsonl"}


@pytest.mark.parametrize("how", [[], ["--quick"]])
def test_whole_shards_pass(whole: Path, how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(whole), *how])
    assert re.search(r"3 shards, 45 records, \d+ bytes; .* checked, all as the manifest says", capsys.readouterr().out)


def test_every_damaged_shard_is_named(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip(shards / "shard-000000.tar", 40)  # in a header, which reading never looks at
    (shards / "shard-000002.tar").unlink()
    _flip(shards / "shard-000001.crops", 2000)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(shards)])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert "damaged: shard-000000.tar: shard-000000.tar has SHA-256" in errors
    assert "damaged: shard-000002.tar: shard-000002.tar is missing" in errors
    assert "damaged: shard-000001.tar: shard-000001.crops has SHA-256" in errors
    assert "3 of 3 shards" in errors
    assert "give --repair" in errors


@pytest.mark.parametrize(
    ("file", "offset", "sentence"),
    [
        ("shard-000001.tar", 3, "has no tar header where it should begin"),
        ("shard-000001.tar", 1024 + 7, "does not have the digest"),
        ("shard-000001.npy", -3, "is not the one that its manifest names"),
        ("shard-000001.crops", 1024 + 7, "shard-000001.crops' does not have the digest"),
    ],
)
def test_a_quick_look_finds_what_it_looks_at(
    shards: Path, file: str, offset: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(shards / file, offset)
    with pytest.raises(SystemExit):
        main(["verify", "--quick", str(shards)])
    assert sentence in capsys.readouterr().err


def test_a_repair_makes_the_same_bytes_again(whole: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip(shards / "shard-000000.tar", 2000)
    _flip(shards / "shard-000002.crops", 7777)
    untouched = (shards / "shard-000001.tar").stat().st_ino
    main(["verify", "--repair", str(shards)])
    output = capsys.readouterr().out
    assert "repaired: shard-000000.tar, the same bytes as before" in output
    assert "repaired: shard-000002.tar, the same bytes as before" in output
    assert _contents(shards) == _contents(whole)
    assert (shards / "shard-000001.tar").stat().st_ino == untouched


def test_a_repair_tells_of_other_bytes(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after an update of torch: here the manifest and receipt of a shard are those of another maker."""
    receipt = shards / "encoding" / "shard-000001.json"
    content = json.loads(receipt.read_text())
    content["shard"]["sha256"] = "0" * 64
    receipt.write_text(json.dumps(content | {"made_with": "torch 1.0, Pillow 1.0, an abacus"}))
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text())
    old = manifest["shards"][1]["sha256"]
    text = path.read_text().replace(old, "0" * 64)
    fingerprint = _fingerprint_of(text)
    path.write_text(text.replace(manifest["fingerprint"], fingerprint))
    main(["verify", "--repair", str(shards)])
    output = capsys.readouterr().out
    assert "repaired: shard-000001.tar, with OTHER bytes than before: made with torch 2" in output
    assert "before with torch 1.0, Pillow 1.0, an abacus" in output
    assert f"fingerprint was {fingerprint[:12]} and is {manifest['fingerprint'][:12]}" in output


def _fingerprint_of(text: str) -> str:
    """Return the fingerprint of a manifest's text, as a manifest that says so would have it."""
    from dit_scale.data.manifest import parse_manifest

    with pytest.raises(InputError, match=r"its content gives") as raised:
        parse_manifest(text.encode(), "manifest.json")
    short = str(raised.value).split("its content gives ")[1][:12]
    import hashlib

    content = json.loads(text)
    content.pop("fingerprint")
    whole = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert whole.startswith(short)
    return whole


def test_a_repair_finds_images_that_have_moved(
    images: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(images, tmp_path / "moved")
    settings = shards / "encoding" / "config.yaml"
    settings.write_text(settings.read_text().replace(str(images), "/gone"))
    (shards / "shard-000001.tar").unlink()
    with pytest.raises(SystemExit):
        main(["verify", "--repair", str(shards)])
    assert "source.path '/gone' does not exist" in capsys.readouterr().err
    main(["verify", "--repair", str(shards), f"source.path={moved}"])
    assert "repaired: shard-000001.tar, the same bytes as before" in capsys.readouterr().out


def test_a_damaged_autoencoder_is_found(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip(shards / "autoencoder.safetensors", -5)
    with pytest.raises(SystemExit):
        main(["verify", str(shards)])
    assert "put back the file that belongs to these latents" in capsys.readouterr().err


@pytest.fixture(scope="module")
def other(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images by the same autoencoder: a shard less, and nothing in common but the names of the files."""
    folder = tmp_path_factory.mktemp("verify-other")
    images = draw_images(folder / "images", ("wedges", "squares"))
    main(["encode", "quickstart-encode", *encode_settings(images, folder / "shards", whole)])
    return folder / "shards"


def test_the_manifest_of_another_folder_is_found_out_and_made_again(
    whole: Path, shards: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No shard is encoded again: it is the manifest that is wrong."""
    shutil.copy(other / "manifest.json", shards)
    before = {path.name: path.stat().st_ino for path in shards.glob("shard-*")}
    with pytest.raises(InputError, match=r"shard-000000.npy' is not the one that its manifest names"):
        LatentDataset.open(shards)
    with pytest.raises(SystemExit):
        main(["verify", str(shards)])
    assert "2 of 2 shards" in capsys.readouterr().err
    main(["verify", "--repair", str(shards)])
    output = capsys.readouterr().out
    assert "repaired: manifest.json, which told of other shards than were made here" in output
    assert "3 shards, 45 records" in output
    assert _contents(shards) == _contents(whole)
    assert {path.name: path.stat().st_ino for path in shards.glob("shard-*")} == before


@pytest.mark.parametrize("endings", [[".tar"], [".tar", ".npy"]], ids=["tar", "tar and sidecar"])
def test_a_shard_of_another_folder_is_found_out_and_made_again(
    whole: Path, shards: Path, other: Path, endings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in endings:
        shutil.copy(other / f"shard-000000{ending}", shards)
    assert (shards / "shard-000000.tar").stat().st_size == (whole / "shard-000000.tar").stat().st_size
    with pytest.raises(InputError, match=r"shard-000000"):
        LatentDataset.open(shards).read(np.arange(16), np.zeros(16, bool))
    for how in ([], ["--quick"]):
        with pytest.raises(SystemExit):
            main(["verify", str(shards), *how])
        assert "1 of 3 shards" in capsys.readouterr().err
    main(["verify", "--repair", str(shards)])
    assert "repaired: shard-000000.tar, the same bytes as before" in capsys.readouterr().out
    assert _contents(shards) == _contents(whole)


def test_what_lies_in_object_storage_is_not_verified_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "s3://bucket/latents"])
    assert stopped.value.code == 2
    assert "is no folder of this machine; verify it where it was made" in capsys.readouterr().err
