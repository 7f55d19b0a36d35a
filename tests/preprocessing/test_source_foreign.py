"""What is no source but may become one: each refusal says what it is, and what it advises works."""

import bz2
import gzip
import io
import lzma
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dit_scale.config import SourceConfig
from dit_scale.errors import InputError
from preprocessing.sources import Source, list_source
from preprocessing.sources.foreign import foreign_below
from tests.preprocessing.images import draw_tree, encoded, picture, tar_of

IMAGE = encoded(picture(0))
TREE = {"ant/x.png": IMAGE, "bee/x.png": IMAGE}
SAMPLES = {"x.png": IMAGE, "x.cls": b"0"}


def _listed(path: Path, **settings: object) -> Source:
    return list_source(SourceConfig(path=str(path), **settings))  # type: ignore[arg-type]


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        _listed(path)
    return str(caught.value)


def _zip_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def _follow(sentence: str, number: int) -> Source:
    """Run the command that a sentence gives, and list what it says to give then."""
    command, target = re.findall(r"'([^']+)' and give (\S+)", sentence)[number]
    subprocess.run(["sh", "-ec", command], check=True)
    return _listed(Path(target))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("x.zip", _zip_of(TREE), "is a zip archive"),
        ("x.tar.gz", gzip.compress(tar_of(TREE)), "is a gzip-compressed file"),
        ("x.tgz", gzip.compress(tar_of(TREE)), "is a gzip-compressed file"),
        ("x.tar.bz2", bz2.compress(tar_of(TREE)), "is a bzip2-compressed file"),
        ("x.tar.xz", lzma.compress(tar_of(TREE)), "is an xz-compressed file"),
        ("x.tar", gzip.compress(tar_of(TREE)), "is a gzip-compressed file"),
    ],
)
def test_archives_are_unpacked_as_the_sentence_says(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    said = _refusal(tmp_path / name)
    assert f"'{tmp_path / name}' {what}, which is not read as a source: unpack it with" in said
    assert _follow(said, 0).class_names == ["ant", "bee"]
    assert what in _refusal(tmp_path) if name == "x.tar" else True


def test_compressed_samples_become_a_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar_of(SAMPLES)))
    assert _follow(_refusal(tmp_path / "x.tar.gz"), 1).name(0) == "x-unpacked.tar/x.png"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PAR1" + bytes(8), r"is a Parquet table, .*docs/data.md shows under \"Sources that are not read\""),
        (b"ARROW1" + bytes(8), r"is an Arrow table"),
        (
            _zip_of({"arr_0.npy": b""}),
            r"is an .npz archive, which is not read .*: write its images to class folders",
        ),
        (b"\x93NUMPY" + bytes(8), r"is a .npy array"),
        (b"\x89HDF\r\n\x1a\n", r"is an HDF5 file"),
        (b"\x28\xb5\x2f\xfd" + bytes(8), r"is a zstd-compressed file"),
        (IMAGE, r"is an image, .* give the folder of class folders it lies in"),
        (encoded(picture(0), "JPEG"), r"is an image"),
        (b"some text", r"is not a whole, uncompressed tar"),
    ],
)
def test_files_that_are_no_source_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "file").write_bytes(content)
    assert re.search(rf"'{tmp_path}/file' {what}", _refusal(tmp_path / "file"))


def test_what_the_message_points_to_is_there() -> None:
    assert "### Sources that are not read" in (Path(__file__).parents[2] / "docs/data.md").read_text()


def test_a_folder_of_tables_or_archives_is_named_by_the_first(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        (tmp_path / "data" / f"train-{number}.parquet").write_bytes(b"PAR1" + bytes(8))
    assert re.search(r"holds no image; 'data/train-0.parquet' is a Parquet table", _refusal(tmp_path))


def test_a_flat_folder_is_told_how_to_give_labels(tmp_path: Path) -> None:
    flat = draw_tree(tmp_path, {"ant": 3}) / "ant"
    (flat / "empty").mkdir()
    said = _refusal(flat)
    assert re.search(r"ant' holds 3 images and no class folder with images; give the folder above", said)
    assert _listed(flat.parent).class_names == ["ant"]
    (tmp_path / "labels").write_text("0\n0\n0\n")
    assert len(_listed(flat, labels=str(tmp_path / "labels"))) == 3


def test_a_source_without_images_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    for name in ("a.avif", "b.avif", ".c"):
        (tmp_path / "ant" / name).touch()
    np.save(tmp_path / "ant" / "d.npy", np.zeros(3))
    assert "'ant/d.npy' is a .npy array" in _refusal(tmp_path)
    (tmp_path / "ant" / "d.npy").unlink()
    assert "holds no image (but .avif (2), hidden files (1)); images lie in class folders" in _refusal(tmp_path)


def test_the_search_for_such_a_file_ends_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/c", "d"):
        (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / "b" / "x.npy", np.zeros(1))
    listed, scandir = [], os.scandir

    def noted(path: Any) -> Any:
        listed.append(os.path.relpath(path, tmp_path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    sentence = foreign_below(tmp_path)
    assert sentence is not None
    assert sentence.startswith("'b/x.npy' is ")
    assert set(listed) == {".", "a", "b"}
