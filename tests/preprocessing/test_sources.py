"""Listings: labels and order from sorted names, images at random, mistakes in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_scale.config import SourceConfig
from dit_scale.errors import InputError
from preprocessing.decoding import Decoder, decode_image, open_decoder
from preprocessing.sources import Place, Source, list_source
from tests.preprocessing.images import draw_tree, picture, write_tar


def _listed(path: Path) -> Source:
    return list_source(SourceConfig(path=str(path)))


def test_a_tree_is_listed_by_sorted_names(tmp_path: Path) -> None:
    draw_tree(tmp_path, {"zebra": 2, "ant": 3, "Bee": 1})
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / "._000.jpg").write_bytes(b"a Mac was here")
    (tmp_path / "ant" / "deeper").mkdir()
    picture(9).save(tmp_path / "ant" / "deeper" / "x.png")
    source = _listed(tmp_path)
    assert source.class_names == ["Bee", "ant", "zebra"]
    names = [source.name(i) for i in range(len(source))]
    expected = ["Bee/000.jpg", "ant/000.jpg", "ant/001.png", "ant/002.jpg", "ant/deeper/x.png"]
    assert names == [*expected, "zebra/000.jpg", "zebra/001.png"]
    assert [source.label(i) for i in range(len(source))] == [0, 1, 1, 1, 1, 2, 2]
    assert source.place(4).read() == (tmp_path / "ant/deeper/x.png").read_bytes()


def test_the_order_does_not_come_from_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = _listed(draw_tree(tmp_path / "one", {"a": 4, "b": 4})).digest()
    walk, iterdir = os.walk, Path.iterdir
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((d, s, f[::-1]) for d, s, f in walk(*a, **k)))
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(iterdir(self))))
    assert _listed(tmp_path / "one").digest() == digest
    assert _listed(draw_tree(tmp_path / "elsewhere", {"a": 4, "b": 4})).digest() == digest
    picture(0).save(tmp_path / "one" / "a" / "another.png")
    assert _listed(tmp_path / "one").digest() != digest


def test_webdataset_tars_are_listed_with_offsets(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", [("dir/k", picture(4), "0")], ending="png")
    write_tar(tmp_path / "a.tar", [("x0", picture(0), "2"), ("x1", picture(1), "0\n")])
    for path, count in ((tmp_path, 3), (tmp_path / "a.tar", 2)):
        source = _listed(path)
        assert len(source) == count
        assert source.class_names == ["0", "1", "2"]
        assert [source.label(i) for i in range(2)] == [2, 0]
        assert source.name(1) == "a.tar/x1.png"
        np.testing.assert_array_equal(decode_image(source.place(1), 72), decode_image(source.place(1), 72))
        decoded = decode_image(source.place(0), 72)
        assert isinstance(decoded, np.ndarray)
        np.testing.assert_array_equal(decoded, np.asarray(picture(0).crop((4, 0, 76, 72))))


def test_a_listing_is_the_same_after_it_was_stored(tmp_path: Path) -> None:
    source = _listed(draw_tree(tmp_path / "tree", {"a": 3, "b": 2}))
    source.save(tmp_path / "source.npy")
    again = Source.load(tmp_path / "tree", source.class_names, tmp_path / "source.npy")
    assert again.digest() == source.digest()
    assert [again.place(i) for i in range(5)] == [source.place(i) for i in range(5)]


def test_images_of_every_mode_become_rgb_and_others_are_rejected(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "LA", "1", "CMYK"):
        path = tmp_path / (f"{mode}.tiff" if mode == "CMYK" else f"{mode}.png")
        picture(1).convert(mode).save(path)
        decoded = decode_image(Place(path, 0, -1), 32)
        assert isinstance(decoded, np.ndarray), mode
        assert decoded.shape == (32, 32, 3)
    picture(2).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    (tmp_path / "text.png").write_text("no image at all")
    assert "truncated" in decode_image(Place(tmp_path / "cut.jpg", 0, -1), 32)
    assert "UnidentifiedImageError" in decode_image(Place(tmp_path / "text.png", 0, -1), 32)
    with pytest.raises(FileNotFoundError):  # the storage's fault, not the image's
        decode_image(Place(tmp_path / "gone.png", 0, -1), 32)


def test_a_pool_decodes_in_order(tmp_path: Path) -> None:
    source = _listed(draw_tree(tmp_path, {"a": 30, "b": 30}))
    order = [*range(59, -1, -1), 3]
    inline = list(Decoder(source, 32).decode(order))
    with open_decoder(source, 32, 2) as decoder:
        for image, expected in zip(decoder.decode(order), inline, strict=True):
            np.testing.assert_array_equal(image, expected)


def test_processes_that_decode_do_not_import_torch() -> None:
    code = "import sys, preprocessing.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("label", ["cat", "-1", ""])
def test_a_label_that_is_no_number_is_named(tmp_path: Path, label: str) -> None:
    write_tar(tmp_path / "a.tar", [("x", Image.new("RGB", (4, 4)), label)])
    with pytest.raises(InputError, match=r"'x.cls' in '.*a.tar' is .* not a class number"):
        _listed(tmp_path)


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source.path '.*nowhere' does not exist"):
        _listed(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no image; images lie in class folders"):
        _listed(tmp_path)
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(InputError, match=r"'.*broken.tar' is not a whole, uncompressed tar"):
        _listed(tmp_path)
