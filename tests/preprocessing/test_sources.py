"""Folders of images, and what every listing keeps: order from sorted names, images at random, clear mistakes."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from dit_scale.config import SourceConfig
from dit_scale.errors import Failure, InputError
from preprocessing.sources import Place, Source, list_source, root_of
from tests.preprocessing.images import draw_tree, encoded, picture, tar_of, write_tar


def _listed(path: Path, **settings: object) -> Source:
    return list_source(SourceConfig(path=str(path), **{key: str(value) for key, value in settings.items()}))  # type: ignore[arg-type]


def _names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_a_tree_is_listed_by_sorted_names(tmp_path: Path) -> None:
    draw_tree(tmp_path, {"zebra": 2, "ant": 3, "Bee": 1})
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / "._000.jpg").write_bytes(b"a Mac was here")
    (tmp_path / "ant" / "deeper").mkdir()
    picture(9).save(tmp_path / "ant" / "deeper" / "x.png")
    (tmp_path / "zebra" / "002.JPEG").write_bytes(encoded(picture(3), "JPEG"))
    (tmp_path / ".cache").mkdir()
    source = _listed(tmp_path)
    assert source.class_names == ["Bee", "ant", "zebra"]
    expected = ["Bee/000.jpg", "ant/000.jpg", "ant/001.png", "ant/002.jpg", "ant/deeper/x.png"]
    assert _names(source) == [*expected, "zebra/000.jpg", "zebra/001.png", "zebra/002.JPEG"]
    assert [source.label(i) for i in range(len(source))] == [0, 1, 1, 1, 1, 2, 2, 2]
    assert source.place(4).read() == (tmp_path / "ant/deeper/x.png").read_bytes()


def test_the_order_does_not_come_from_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = _listed(draw_tree(tmp_path / "one", {"a": 4, "b": 4})).digest()
    for name in (
        "b/003.png",
        "a/000.jpg",
        "b/001.png",
        "a/002.jpg",
        "a/001.png",
        "b/000.jpg",
        "b/002.jpg",
        "a/003.png",
    ):
        copy = tmp_path / "elsewhere" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((tmp_path / "one" / name).read_bytes())
    assert _listed(tmp_path / "elsewhere").digest() == digest
    monkeypatch.chdir(tmp_path)
    assert _listed(Path("one")).digest() == digest
    picture(0).save(tmp_path / "one" / "a" / "another.png")
    assert _listed(tmp_path / "one").digest() != digest


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/cl\xe9"
    os.mkdir(folder)  # noqa: PTH102
    with open(folder + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(encoded(picture(0)))
    source = _listed(tmp_path)
    assert os.fsencode(source.name(0)) == b"cl\xe9/\xff.png"
    assert source.place(0).read() == encoded(picture(0))
    assert len(source.digest()) == 64


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    draw_tree(tmp_path / "store", {"x": 2})
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "b").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "tree" / "a" / "one.png").symlink_to(tmp_path / "store" / "x" / "001.png")
    source = _listed(tmp_path / "tree")
    assert _names(source) == ["a/one.png", "b/000.jpg", "b/001.png"]
    assert source.place(0).read() == source.place(2).read()
    (tmp_path / "tree" / "a" / "again").symlink_to(tmp_path / "tree")
    with pytest.raises(InputError, match=r"again' is a link to a folder above itself"):
        _listed(tmp_path / "tree")


@pytest.mark.parametrize("kind", ["folders", "tar", "list"])
def test_a_listing_is_the_same_after_it_was_stored(tmp_path: Path, kind: str) -> None:
    tree = draw_tree(tmp_path / "tree", {"a": 3, "b": 2})
    write_tar(tmp_path / "x.tar", [(f"{i}", picture(i), "0") for i in range(5)])
    (tree / "list.csv").write_text("path,label\n" + "".join(f"a/00{i}.{e},0\n" for i, e in enumerate(("jpg", "png"))))
    config = SourceConfig(path=str({"folders": tree, "tar": tmp_path / "x.tar", "list": tree / "list.csv"}[kind]))
    source = list_source(config)
    source.save(tmp_path / "source.npy")
    again = Source.load(root_of(config), source.class_names, tmp_path / "source.npy")
    assert again.digest() == source.digest()
    for i in range(len(source)):
        assert again.place(i) == source.place(i)
        assert again.place(i).read()


def test_storage_that_fails_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"the image")
    link = tmp_path / "link"
    link.symlink_to("/proc/self/mem")  # whose first bytes are an input/output error
    with pytest.raises(OSError) as caught:
        link.open("rb").read(10)
    assert caught.value.errno == errno.EIO

    def mend() -> None:
        time.sleep(0.3)
        (tmp_path / "new").symlink_to(tmp_path / "image.png")
        (tmp_path / "new").replace(link)

    mending = threading.Thread(target=mend)
    mending.start()
    assert Place(link, 4, 5).read() == b"image"
    mending.join()


def test_storage_that_stays_broken_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Failure, match=r"image file '/proc/self/mem' cannot be read \(Input/output error\)"):
        Place(Path("/proc/self/mem"), 0, 10).read(patience_seconds=0.5)
    assert time.monotonic() - started > 0.1
    with pytest.raises(Failure, match=r"gone.png' cannot be read \(No such file or directory\)"):
        Place(tmp_path / "gone.png", 0, -1).read()
    (tmp_path / "a.tar").write_bytes(tar_of({"x.png": bytes(3000)})[:2000])
    with pytest.raises(Failure, match=r"a.tar' ends within the image of 3000 bytes at 512, so it is shorter"):
        Place(tmp_path / "a.tar", 512, 3000).read()


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source.path '.*nowhere' does not exist"):
        _listed(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no image; images lie in class folders"):
        _listed(tmp_path)
    (tmp_path / "file.txt").write_text("no tar")
    for format_, message in (
        ("folders", r"file.txt' is not a folder of class folders"),
        ("flat", r"file.txt' is not a folder of images"),
        ("list", r"file.txt' is not a .jsonl or .csv file"),
        ("tars", r"file.txt' is not a whole, uncompressed tar"),
    ):
        with pytest.raises(InputError, match=message):
            _listed(tmp_path / "file.txt", format=format_)
    with pytest.raises(InputError, match=r"source.format=flat has no class folders; give source.labels"):
        _listed(tmp_path, format="flat")
    with pytest.raises(InputError, match=r"source.labels '.*file.txt' goes with a flat folder or a tar"):
        _listed(tmp_path, format="folders", labels=tmp_path / "file.txt")
