"""Files that say labels: lists of images, labels of a flat folder, and the order of the classes."""

import json
from pathlib import Path

import pytest

from dit_scale.config import EncodeConfig, SourceConfig, load_config
from dit_scale.errors import InputError
from preprocessing.encode import encode
from preprocessing.sources import Source, list_source
from tests.preprocessing.images import draw_tree, picture, write_tar


def _listed(path: Path, **settings: object) -> Source:
    return list_source(SourceConfig(path=str(path), **{key: str(value) for key, value in settings.items()}))  # type: ignore[arg-type]


def _labels(source: Source) -> list[int]:
    return [source.label(i) for i in range(len(source))]


def _named(source: Source) -> dict[str, str]:
    return {source.name(i): source.class_names[source.label(i)] for i in range(len(source))}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "val"
    folder.mkdir()
    for number in (3, 1, 2):
        picture(number).save(folder / f"val_{number:04d}.JPEG")
    return folder


KAGGLE = (
    "ImageId,PredictionString\nval_0003,n03 85 1 131 499 254\nval_0001,n01 0 0 9 9 n02 3 4 5 6\nval_0002,n03 1 2 3 4\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "n01\nn03\nn03\n",
        "\ufeffn01\r\nn03\r\n\r\nn03",
        KAGGLE,
        "val_0002.JPEG n03\nval_0003.JPEG n03\nval_0001.JPEG n01",
        "val_0002\tn03\nval_0003  \tn03\nval_0001\tn01\n",
        "filename,label\nval_0002.JPEG,n03\nval_0003,n03,ignored\nval_0001.JPEG, n01\n",
    ],
)
def test_labels_of_a_flat_folder(flat: Path, text: str) -> None:
    (flat.parent / "labels").write_text(text, encoding="utf-8")
    source = _listed(flat, labels=flat.parent / "labels")
    assert _named(source) == {"val_0001.JPEG": "n01", "val_0002.JPEG": "n03", "val_0003.JPEG": "n03"}
    assert (source.class_names, _labels(source)) == (["n01", "n03"], [0, 1, 1])


def test_labels_may_be_numbers(flat: Path) -> None:
    (flat.parent / "labels").write_text("2\n0\n10")
    source = _listed(flat, labels=flat.parent / "labels", format="flat")
    assert (source.class_names, _labels(source)) == ([str(i) for i in range(11)], [2, 0, 10])


def test_images_of_one_name_in_two_folders_are_told_apart_by_path(flat: Path) -> None:
    for name in ("a", "b"):
        (flat / name).mkdir()
        picture(1).save(flat / name / "val_0001.JPEG")
    lines = ["a/val_0001 x", "b/val_0001.JPEG y", "val_0002 z", "val_0003 z"]
    (flat.parent / "labels").write_text("\n".join([*lines, "val_0001.JPEG w"]))
    with pytest.raises(InputError, match=r"two labels for image 'a/val_0001.JPEG'"):
        _listed(flat, labels=flat.parent / "labels")
    (flat / "val_0001.JPEG").unlink()
    (flat.parent / "labels").write_text("\n".join(lines))
    assert list(_named(_listed(flat, labels=flat.parent / "labels")).values()) == ["x", "y", "z", "z"]
    (flat.parent / "labels").write_text("\n".join(["val_0001 x", *lines[2:]]))
    with pytest.raises(InputError, match=r"'val_0001' in .* is image 'a/val_0001.JPEG' and image 'b/val_0001.JPEG'"):
        _listed(flat, labels=flat.parent / "labels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", r"holds 2 labels for 3 images"),
        ("1\n2\n3\n4\n", r"holds 4 labels for 3 images"),
        ("", r"holds 0 labels for 3 images"),
        ("1\nval_0002 1\n3", r"lines of one word and lines of more \(line 2\)"),
        ("val_0001 1\nval_0003 1\n", r"holds no label for image 'val_0002.JPEG'"),
        ("val_0001 1\nval_0003 1\nval_0002 1\nval_0004 1", r"'val_0004' in line 4 .* is no image of the source"),
        ("val_0004 1\nval_0001 1\nval_0003 1\nval_0002 1\n", r"'val_0004' in line 1 .* is no image of the source"),
        ("val_0001 1\nval_0003 1\nval_0001 2\nval_0002 1\n", r"holds 'val_0001' twice"),
        ("val_0001 1\nval_0001.JPEG 1\nval_0002 1\nval_0003 1\n", r"two labels for image 'val_0001.JPEG'"),
        ("val_0001,\nval_0002,1\nval_0003,1\n", r"line 1 of source.labels '.*' is 'val_0001,'; write LABEL or NAME"),
        ("1\nl2\n3\n", r"are numbers \('1'\) and names \('l2'\)"),
        ("1\n2\n99999999\n", r"label 99999999 of .* is no class number"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_refused(flat: Path, text: str, message: str) -> None:
    (flat.parent / "labels").write_text(text)
    with pytest.raises(InputError, match=message):
        _listed(flat, labels=flat.parent / "labels")


def test_class_names_give_the_order(tmp_path: Path, flat: Path) -> None:
    tree = draw_tree(tmp_path / "tree", {"ant": 2, "cow": 1})
    names = tmp_path / "names.txt"
    names.write_text("\ufeffcow\r\nbee\r\nant of old\r\nant\r\n\r\n", encoding="utf-8")
    source = _listed(tree, class_names=names)
    assert (source.class_names, _labels(source)) == (["cow", "bee", "ant of old", "ant"], [3, 3, 0])
    assert [source.name(i) for i in range(3)] == [_listed(tree).name(i) for i in range(3)]
    (tmp_path / "labels").write_text("cow\nbee\ncow\n")
    assert _labels(_listed(flat, labels=tmp_path / "labels", class_names=names)) == [0, 1, 0]
    (tmp_path / "labels").write_text("0\n1\n3\n")
    assert _labels(_listed(flat, labels=tmp_path / "labels", class_names=names)) == [0, 1, 3]
    (tmp_path / "labels").write_text("1\n2\n4\n")
    with pytest.raises(
        InputError, match=r"label 4 .* is beyond the 4 names of source.class_names; labels count from 0"
    ):
        _listed(flat, labels=tmp_path / "labels", class_names=names)
    (tmp_path / "labels").write_text("cow\nbees\ncow\n")
    with pytest.raises(
        InputError, match=r"class 'bees' of '.*labels' is not in source.class_names; did you mean 'bee'"
    ):
        _listed(flat, labels=tmp_path / "labels", class_names=names)
    names.write_text("cow\nants\n")
    with pytest.raises(InputError, match=r"class 'ant' of class folders of '.*' is not in .*; did you mean 'ants'"):
        _listed(tree, class_names=names)
    names.write_text("".join(f"{i:04d}\n" for i in range(1000)))
    with pytest.raises(InputError, match=r"class 'ant' .* which holds 0000, .*, … \(1000 in all\); add") as caught:
        _listed(tree, class_names=names)
    assert len(str(caught.value)) < 400
    names.write_text("\n")
    with pytest.raises(InputError, match=r"holds no name"):
        _listed(tree, class_names=names)
    with pytest.raises(InputError, match=r"source.class_names '.*gone' cannot be read"):
        _listed(tree, class_names=tmp_path / "gone")


def test_equal_class_names_stay_apart(tmp_path: Path, flat: Path) -> None:
    """Where labels are numbers, names may be equal; a class that is told by such a name is refused."""
    names, labels = tmp_path / "names", tmp_path / "labels"
    names.write_text("crane\nbee\ncrane\n")
    labels.write_text("0\n1\n2\n")
    source = _listed(flat, labels=labels, class_names=names)
    assert (source.class_names, _labels(source)) == (["crane", "bee", "crane"], [0, 1, 2])
    tar = tmp_path / "tars"
    tar.mkdir()
    write_tar(tar / "a.tar", [(f"{label}", picture(label), str(label)) for label in range(3)])
    source = _listed(tar, class_names=names)
    assert (source.class_names, _labels(source)) == (["crane", "bee", "crane"], [0, 1, 2])
    refused = r"class 'crane' of .* is the name of labels 0 and 2 in source.class_names; give each label a name"
    labels.write_text("bee\nbee\ncrane\n")
    with pytest.raises(InputError, match=refused):
        _listed(flat, labels=labels, class_names=names)
    with pytest.raises(InputError, match=refused):
        _listed(draw_tree(tmp_path / "tree", {"crane": 1}), class_names=names)
    assert _labels(_listed(draw_tree(tmp_path / "bees", {"bee": 2}), class_names=names)) == [1, 1]


def test_labels_that_are_numbers_and_names_of_other_classes_are_refused(tmp_path: Path, flat: Path) -> None:
    names, labels = tmp_path / "names", tmp_path / "labels"
    names.write_text("0\n1\n10\n2\n")  # folders sorted as text
    labels.write_text("0\n1\n1\n")
    assert _labels(_listed(flat, labels=labels, class_names=names)) == [0, 1, 1]  # the same as numbers
    labels.write_text("0\n1\n2\n")
    with pytest.raises(InputError, match=r"label '2' of .* may be number 2, or the name of label 3 in source.class_n"):
        _listed(flat, labels=labels, class_names=names)


def test_class_names_of_another_shard_folder(tmp_path: Path) -> None:
    train = draw_tree(tmp_path / "train", {"ant": 3, "bee": 3, "cow": 3})
    settings = [f"source.path={train}", f"output={tmp_path / 'latents'}", "image_size=32", "decode_workers=0"]
    encode(load_config(EncodeConfig, None, [*settings, "autoencoder.name=pca"]))
    part = draw_tree(tmp_path / "part", {"bee": 1, "cow": 2})
    for shards in (tmp_path / "latents", tmp_path / "latents" / "manifest.json"):
        source = _listed(part, class_names=shards)
        assert (source.class_names, _labels(source)) == (["ant", "bee", "cow"], [1, 2, 2])
    with pytest.raises(InputError, match=r"has no manifest.json"):
        _listed(part, class_names=tmp_path)


ENTRIES = [("b/001.png", "cat"), ("./a/000.jpg", "dog"), ("a//001.png", "cat")]


def _write_list(path: Path, entries: list[tuple[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        lines = [json.dumps({"id": 7, "label": label, "path": name}) for name, label in entries]
    else:
        lines = ["id,path,more,label", *(f'7,"{name}",,{label}' for name, label in entries)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_list_is_read_by_path_and_not_by_line(tmp_path: Path, ending: str) -> None:
    tree = draw_tree(tmp_path / "tree", {"a": 2, "b": 2})
    source = _listed(_write_list(tree / f"train.{ending}", ENTRIES))
    assert _named(source) == {"a/000.jpg": "dog", "a/001.png": "cat", "b/001.png": "cat"}
    assert (source.class_names, _labels(source)) == (["cat", "dog"], [1, 0, 0])
    assert source.place(2).read() == (tree / "b/001.png").read_bytes()
    draw_tree(tmp_path / "moved", {"a": 2, "b": 2})
    assert _listed(_write_list(tmp_path / "moved" / f"l.{ending}", ENTRIES[::-1])).digest() == source.digest()
    (tree / "sub").mkdir()
    beside = _write_list(tree / "sub" / f"x.{ending}", [("../a/000.jpg", 2)])
    assert (_listed(beside).class_names, _labels(_listed(beside))) == (["0", "1", "2"], [2])
    assert _listed(beside).place(0).read() == (tree / "a/000.jpg").read_bytes()


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*ENTRIES, ("a/001.png", "dog")], r"lists 'a/001.png' twice, in lines . and ."),
        ([("/data/a.png", "x")], r"has absolute path '/data/a.png'; put the list above the images"),
        ([("a/000.jpg", "x"), ("a/999.jpg", "x")], r"line . of .* names 'a/999.jpg', which is not in"),
        ([("nowhere/000.jpg", "x")], r"names 'nowhere/000.jpg', which is not in"),
        ([("", "x")], r"has path '' and label 'x'"),
        ([("a/000.jpg", "")], r"has path 'a/000.jpg' and label ''"),
        ([("a/000.jpg", 1), ("a/001.png", "x")], r"are numbers \('1'\) and names \('x'\)"),
        ([], r"holds no image"),
    ],
)
def test_lists_with_mistakes_are_refused(tmp_path: Path, ending: str, entries: list, message: str) -> None:
    tree = draw_tree(tmp_path / "tree", {"a": 2, "b": 2})
    with pytest.raises(InputError, match=message):
        _listed(_write_list(tree / f"train.{ending}", entries))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"path": "a"', r"line 1 of '.*x.jsonl': expected JSON, found text that is not, from column 13 on"),
        ("x.jsonl", "{'path': 'a', 'label': 0}", r"from column 2 on; write {\"path\": …, \"label\": …}$"),
        ("x.jsonl", '\n["a", 1]', r'line 2 of .*: expected an object with keys, found a list of 2; write {"path"'),
        ("x.jsonl", '{"path": "a"}', r"line 1 of .* has path 'a' and label nothing"),
        ("x.jsonl", '{"path": "a", "label": true}', r"label true"),
        ("x.csv", "", r"names no column 'path'; begin it with the header path,label"),
        ("x.csv", "a/000.jpg,cat\n", r"names no column 'path'"),
        ("x.csv", "path,class\na/000.jpg,cat\n", r"names no column 'label'"),
        ("x.csv", f"path,label\n{'a' * 200_000},0\n", r"'.*x.csv' is not CSV after line 1: a quote is not closed"),
        ("x.csv", "path,label\na/000.jpg\n", r"has path 'a/000.jpg' and label nothing"),
    ],
)
def test_files_that_are_no_lists_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        _listed(tmp_path / name)
