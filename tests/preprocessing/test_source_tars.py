"""Tars: webdataset's own samples, plain images with a file of labels, and a tar a class."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from webdataset.tariterators import base_plus_ext

from dit_scale.config import SourceConfig
from dit_scale.errors import InputError
from preprocessing.decoding import decode_image
from preprocessing.sources import Source, list_source
from tests.preprocessing.images import draw_tree, encoded, picture, tar_of, write_tar


def _listed(path: Path, **settings: object) -> Source:
    return list_source(SourceConfig(path=str(path), **{key: str(value) for key, value in settings.items()}))  # type: ignore[arg-type]


def _rows(source: Source) -> list[tuple[str, bytes, int]]:
    return [(source.name(i), source.place(i).read(), source.label(i)) for i in range(len(source))]


def test_webdataset_tars_are_listed_with_offsets(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", [("dir/k", picture(4), "0")], ending="png")
    write_tar(tmp_path / "a.tar", [("x0", picture(0), "2"), ("x1", picture(1), "0\n")])
    for path, count in ((tmp_path, 3), (tmp_path / "a.tar", 2)):
        source = _listed(path)
        assert len(source) == count
        assert source.class_names == ["0", "1", "2"]
        assert [source.label(i) for i in range(2)] == [2, 0]
        assert source.name(1) == "a.tar/x1.png"
        np.testing.assert_array_equal(decode_image(source.place(0), 72), np.asarray(picture(0).crop((4, 0, 76, 72))))


def _write_samples_of_all_kinds(folder: Path) -> None:
    """Write tars with endings mixed, keys in folders whose names hold dots, other parts and notes between."""
    jpeg, png = encoded(picture(0), "JPEG"), encoded(picture(1))
    members = {
        "__note__": b"a note",
        "x.JPG": jpeg,
        "x.cls": b"3",
        "x.txt": b"a caption",
        "./v1.0/a.b/y.cls": b"0",
        "./v1.0/a.b/y.png": png,
        "v1.0/y.json": json.dumps({"label": 7, "caption": "y"}).encode(),
        "v1.0/y.webp": encoded(picture(2), "WEBP"),
        "z.more.jpg": jpeg[:-2],
        "z.jpeg": jpeg,
        "z.cls": b" 12\n",
        "w.view.png": png,
        "w.cls": b"1",
        "no_image.cls": b"5",
        "é/" + 120 * "long" + ".png": png,
        "é/" + 120 * "long" + ".cls": b"2",
        "noending": b"",
    }
    (folder / "b.tar").write_bytes(tar_of(members))
    (folder / "a.tar").write_bytes(tar_of({"0.bmp": encoded(picture(3), "BMP"), "0.cls": b"4"}))
    for number, format_ in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)):
        with tarfile.open(folder / f"c{number}.tar", "w", format=format_) as archive:
            for name, content in ((f"{'deep/' * 25}k.png", png), (f"{'deep/' * 25}k.cls", b"6"), ("folder", None)):
                info = tarfile.TarInfo(name)
                info.mtime = 1.5 if format_ == tarfile.PAX_FORMAT else 1
                info.type, info.size = (tarfile.REGTYPE, len(content)) if content else (tarfile.DIRTYPE, 0)
                archive.addfile(info, io.BytesIO(content or b""))


def test_a_listing_is_what_webdataset_iterates_over(tmp_path: Path) -> None:
    _write_samples_of_all_kinds(tmp_path)
    with webdataset.TarWriter(str(tmp_path / "d.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": f"sample.s/{i:03d}", "png": encoded(picture(i)), "cls": 9 - i})
    tars = [str(tar) for tar in sorted(tmp_path.glob("*.tar"))]
    assert len(tars) == 6
    endings = ("jpg", "png", "jpeg", "webp", "bmp", "view.png")
    expected = []
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        if images := [sample[ending] for ending in endings if ending in sample]:
            label = int(sample["cls"]) if "cls" in sample else json.loads(sample["json"])["label"]
            expected.append((sample["__key__"], images[0], label))
    listed = [
        (base_plus_ext(name.partition("/")[2])[0], image, label) for name, image, label in _rows(_listed(tmp_path))
    ]
    assert listed == expected
    assert len(listed) == 15


def test_names_with_dots_are_read_where_each_image_has_its_own_label(tmp_path: Path) -> None:
    """A key ends at the first dot of a name: these are two samples, of one image and of two."""
    images = {name: encoded(picture(i)) for i, name in enumerate(("p0.v2.png", "d.1/p1.v1.png", "d.1/p1.v2.x.png"))}
    labels = {"p0.v2.cls": b"2", "d.1/p1.v1.json": b'{"label": 0}', "d.1/p1.v2.x.cls": b"1", "d.1/p1.note.txt": b""}
    (tmp_path / "a.tar").write_bytes(tar_of(dict(sorted((images | labels).items(), reverse=True))))
    source = _listed(tmp_path)
    assert {(name, image): label for name, image, label in _rows(source)} == {
        (f"a.tar/{name}", image): label for (name, image), label in zip(images.items(), (2, 0, 1), strict=True)
    }
    assert source.left_out == {".txt": 1}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("p.v2.png",), r"image 'p.v2.png' but no 'p.cls' or 'p.json' beside it \(a key ends at the first dot"),
        (("p.v1.png", "p.v2.png", "p.v2.cls"), r"sample 'p' in .* holds 2 images, .v1.png and .v2.png; leave one, or"),
        (("p.v1.png", "p.v2.png", "p.cls"), r"name them apart before the first dot, where a sample's key ends"),
        (("p.v2.png", "p.v2.jpg", "p.v2.cls"), r"holds 2 images, .v2.png and .v2.jpg"),
        (("p.v2.png", "p.v3.cls"), r"no 'p.cls' or 'p.json' beside it \(a key ends at the first dot"),
    ],
)
def test_names_with_dots_that_can_be_read_in_two_ways(tmp_path: Path, members: tuple[str, ...], message: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(dict.fromkeys(members, b"0")))
    with pytest.raises(InputError, match=message):
        _listed(tmp_path)


def test_what_tars_hold_besides_is_counted(tmp_path: Path) -> None:
    image = encoded(picture(0))
    sample = {"x.png": image, "x.more.png": image, "x.cls": b"0", "x.txt": b"", "._x.png": b"", "__n__": b"", "no": b""}
    (tmp_path / "a.tar").write_bytes(tar_of(sample))
    (tmp_path / "folder").mkdir()
    (tmp_path / "read.me").touch()
    assert _listed(tmp_path).left_out == {
        ".png": 1,
        ".txt": 1,
        "hidden files": 1,
        "webdataset's notes": 1,
        "files without an ending": 1,
        "folders beside the tars": 1,
        ".me": 1,
    }
    (tmp_path / "labels.txt").write_text("0\n0\n")
    assert _listed(tmp_path / "a.tar", labels=tmp_path / "labels.txt").left_out[".cls"] == 1
    (tmp_path / "c.tar").write_bytes(tar_of({"n1.tar": tar_of({"y.png": image, "y.xml": b""}), "about.txt": b""}))
    assert _listed(tmp_path / "c.tar").left_out == {".xml": 1, ".txt": 1}


def test_labels_of_a_tar_may_have_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x", picture(0), "1")])
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    source = _listed(tmp_path, class_names=tmp_path / "names.txt")
    assert (source.class_names, source.label(0)) == (["ant", "bee", "cow"], 1)
    (tmp_path / "names.txt").write_text("ant\n")
    with pytest.raises(InputError, match=r"label 1 of '.*' is beyond the 1 names of source.class_names; .* from 0"):
        _listed(tmp_path, class_names=tmp_path / "names.txt")


def test_a_tar_of_plain_images_with_a_file_of_labels(tmp_path: Path) -> None:
    images = {f"val/{i:02d}.JPEG": encoded(picture(i), "JPEG") for i in (3, 0, 2, 1)}
    (tmp_path / "val.tar").write_bytes(tar_of(images))
    (tmp_path / "labels.txt").write_text("cow\nant\nbee\nant\n")
    source = _listed(tmp_path / "val.tar", labels=tmp_path / "labels.txt")
    assert source.class_names == ["ant", "bee", "cow"]
    names = [f"val/{i:02d}.JPEG" for i in range(4)]
    assert _rows(source) == [(f"val.tar/{n}", images[n], label) for n, label in zip(names, (2, 0, 1, 0), strict=True)]


@pytest.mark.parametrize("inside_one", [True, False])
def test_class_tars_are_the_class_folders(tmp_path: Path, inside_one: bool) -> None:
    counts = {"n02": 3, "n01": 2, "n10": 4}
    tree = draw_tree(tmp_path / "tree", counts)
    tars = {}
    for name in counts:
        files = sorted((tree / name).iterdir(), reverse=True)
        for path in files:
            path.rename(tree / name / f"{name}_{path.name}")
        tars[f"{name}.tar"] = tar_of({path.name: path.read_bytes() for path in sorted((tree / name).iterdir())[::-1]})
    (tmp_path / "tars").mkdir()
    for name, content in ({"train.tar": tar_of(tars)} if inside_one else tars).items():
        (tmp_path / "tars" / name).write_bytes(content)
    for path in (tmp_path / "tars", tmp_path / "tars" / "train.tar")[: 2 if inside_one else 1]:
        source, unpacked = _listed(path), _listed(tree)
        assert source.class_names == unpacked.class_names == ["n01", "n02", "n10"]
        assert _rows(source) == _rows(unpacked)
        assert source.place(0).offset >= 512
    (tmp_path / "names.txt").write_text("n10\nn01\nn99\nn02")
    renamed = _listed(tmp_path / "tars", class_names=tmp_path / "names.txt")
    assert [renamed.name(i) for i in range(9)] == [source.name(i) for i in range(9)]
    assert [renamed.label(i) for i in range(9)] == [1] * 2 + [3] * 3 + [0] * 4


def test_images_without_labels_are_no_class_unless_one_says_so(tmp_path: Path) -> None:
    for name in ("000.tar", "001.tar"):
        (tmp_path / name).write_bytes(tar_of({"x.png": encoded(picture(0))}))
    with pytest.raises(InputError, match=r"image 'x.png' but no 'x.cls' or 'x.json' .* source.format=class_tars"):
        _listed(tmp_path)
    assert _listed(tmp_path, format="class_tars").class_names == ["000", "001"]


def test_a_tar_of_class_tars_beside_another_tar_is_refused(tmp_path: Path) -> None:
    image = encoded(picture(0))
    (tmp_path / "train.tar").write_bytes(tar_of({"a.tar": tar_of({"x.png": image})}))
    (tmp_path / "val.tar").write_bytes(tar_of({"x.png": image}))
    with pytest.raises(InputError, match=r"train.tar' holds a tar a class, 'val.tar' beside it does not"):
        _listed(tmp_path, format="class_tars")
    (tmp_path / "val.tar").write_bytes((tmp_path / "train.tar").read_bytes())
    with pytest.raises(InputError, match=r"two tars of class 'a'"):
        _listed(tmp_path)


@pytest.mark.parametrize("label", ["cat", "-1", "", "1_0", "1.0"])
def test_a_label_that_is_no_number_is_named(tmp_path: Path, label: str) -> None:
    write_tar(tmp_path / "a.tar", [("x", Image.new("RGB", (4, 4)), label)])
    found = f"'{label}'" if label else "empty"
    with pytest.raises(InputError, match=rf"'x.cls' in '.*a.tar' is {found}, not a class number; write 0, 1, 2"):
        _listed(tmp_path)


@pytest.mark.parametrize("note", ["{}", "[]", "no json", '{"label": "cat"}', '{"label": true}', '{"label": -1}'])
def test_a_note_without_a_class_number_is_named(tmp_path: Path, note: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"x.png": encoded(picture(0)), "x.json": note.encode()}))
    with pytest.raises(InputError, match=rf"'x.json' in '.*a.tar' is '{re.escape(note)}', not a class number"):
        _listed(tmp_path)


def test_samples_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    image = encoded(picture(0))
    for members, message in (
        ({"x.png": image, "x.bmp": image, "x.cls": b"0"}, r"sample 'x' in .* holds 2 images, .png and .bmp"),
        ({"x.png": image, "x.PNG": image, "x.cls": b"0"}, r"holds 'x.PNG' twice in one sample"),
        ({"x.png": image, "x.cls": b"99999999999"}, r"label 99999999999 of .* is no class number"),
    ):
        (tmp_path / "a.tar").write_bytes(tar_of(members))
        with pytest.raises(InputError, match=message):
            _listed(tmp_path)


def test_damaged_tars_are_refused_and_not_cut_short(tmp_path: Path) -> None:
    whole = tar_of({f"{i}.{ending}": b"0" for i in range(9) for ending in ("png", "cls")})
    damaged = bytearray(whole)
    damaged[4 * 1024 + 3] ^= 1
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.LNKTYPE, "b.png"
    for content, message in (
        (b"no tar" * 200, r"is not a whole, uncompressed tar"),
        (b"", r"is not a whole, uncompressed tar \(empty file"),
        (whole[: 4 * 1024], r"cut off"),
        (whole[: 4 * 1024 + 100], r"cut off"),
        (whole[: 4 * 1024 + 512], r"is not a whole, uncompressed tar"),
        (bytes(damaged), r"the header at byte 4096 is damaged"),
        (link.tobuf() + bytes(1024), r"image 'a.png' in '.*' is a link"),
    ):
        for inside in (False, True):
            tar = tar_of({"n01.tar": content}) if inside else content
            (tmp_path / "a.tar").write_bytes(tar)
            with pytest.raises(InputError, match=message if not inside else r"'n01.tar' in '.*a.tar' is not|a.png"):
                _listed(tmp_path)
