"""A condition that is no label, from a file beside each image to what training reads."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from dit_scale.conditioning import CONDITIONS, Condition, RecordArray
from dit_scale.config import DataConfig, EncodeConfig, load_config
from dit_scale.data.manifest import Manifest
from dit_scale.errors import InputError
from dit_scale.training.data import open_dataset
from preprocessing.encode import encode
from preprocessing.verify import verify
from tests.preprocessing.images import draw_tree, picture, write_tar

COUNTS = {"ant": 7, "bee": 5}


class Text(Condition):
    stored = RecordArray("text", "float16", (4, 8))
    null = 0.0

    def embedding(self, hidden_size: int) -> nn.Module:
        return nn.Linear(8, hidden_size)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONDITIONS, "text", Text)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images with a text beside each, whose first number is the image's place in the listing."""
    folder = draw_tree(tmp_path / "images", COUNTS)
    for number, path in enumerate(_images(folder)):
        text = np.random.default_rng(number).normal(size=(4, 8)).astype(np.float16)
        text[0, 0] = number
        np.save(path.with_suffix(".text.npy"), text)
    return folder


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.suffix != ".npy")


def _encode(source: Path, output: Path, *more: str) -> Manifest:
    given = [f"source.path={source}", f"output={output}", "image_size=32", "autoencoder.name=pca", "decode_workers=0"]
    manifest = encode(load_config(EncodeConfig, None, [*given, "shard_records=8", "batch_size=3", *more]))
    assert manifest is not None
    return manifest


def test_each_record_holds_the_text_beside_its_image(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "bee" / "more.npy").touch()
    manifest = _encode(source, tmp_path / "texts", "condition=text")
    assert manifest.arrays == (Text.stored,)
    assert "left out: .npy (1)" in capsys.readouterr().err  # and not the texts
    dataset = open_dataset(DataConfig(path=str(tmp_path / "texts"), check_scale=False), "text")
    moments, texts = dataset.read(np.arange(12), np.zeros(12, bool))
    paths = _images(source)
    assert np.array_equal(texts.numpy(), np.stack([np.load(path.with_suffix(".text.npy")) for path in paths]))
    assert texts[:, 0, 0].tolist() == list(range(12))
    plain = _encode(source, tmp_path / "labels")
    assert plain.arrays == ()
    labels = open_dataset(DataConfig(path=str(tmp_path / "labels"), check_scale=False))
    assert np.array_equal(labels.read(np.arange(12), np.zeros(12, bool))[0], moments)


def test_what_was_begun_goes_on_with_the_same_condition_alone(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "texts"
    before = _encode(source, output, "condition=text")
    with pytest.raises(InputError, match=r'was begun with condition="text", now it is null; set it back'):
        _encode(source, output)
    shard = output / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[-1024 - 450] ^= 1  # in the last record's text
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"1 of 2 shards of '.*' are damaged"):
        verify(output, quick=True)
    verify(output, repair=True)
    assert _encode(source, output, "condition=text") == before
    shutil.rmtree(output)
    _encode(source, output)
    with pytest.raises(InputError, match=r'was begun with condition=null, now it is "text"; set it back'):
        _encode(source, output, "condition=text")


def test_a_text_that_is_not_there_is_named_before_the_first_image_is_encoded(source: Path, tmp_path: Path) -> None:
    missing = _images(source)[9].with_suffix(".text.npy")
    missing.unlink()
    sentence = rf"image '.*' has no '{missing.name}' beside it; write float16 \[4, 8\] by numpy\.save there"
    with pytest.raises(InputError, match=sentence):
        _encode(source, tmp_path / "texts", "condition=text")
    assert not (tmp_path / "texts").exists()


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((4, 8)), r"holds float64 \[4, 8\]; write float16 \[4, 8\] by numpy.save, which the condition reads"),
        (np.zeros((6, 8), np.float16), r"holds float16 \[6, 8\]; write float16 \[4, 8\]"),
        (np.full((4, 8), np.inf, np.float16), "holds numbers that are not finite"),
        (np.array([{}], object), "is not a whole .npy array"),
    ],
)
def test_a_text_of_another_form_is_refused(array: np.ndarray, sentence: str, source: Path, tmp_path: Path) -> None:
    path = _images(source)[5].with_suffix(".text.npy")
    np.save(path, array)
    with pytest.raises(InputError, match=rf"'{path}' {sentence}"):
        _encode(source, tmp_path / "texts", "condition=text")


def test_a_condition_that_cannot_be_stored_is_refused(source: Path, tmp_path: Path) -> None:
    for name in ("label", "none"):
        with pytest.raises(InputError, match=rf"condition={name} reads no array; leave it out"):
            _encode(source, tmp_path / "texts", f"condition={name}")
    with pytest.raises(InputError, match=r"^condition 'txt' is unknown; did you mean 'text'"):
        _encode(source, tmp_path / "texts", "condition=txt")
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "a.tar", [(str(number), picture(number), "0") for number in range(3)])
    with pytest.raises(InputError, match=r"those of '.*a\.tar' lie in a tar; unpack it to class folders"):
        _encode(tars, tmp_path / "texts", "condition=text")
