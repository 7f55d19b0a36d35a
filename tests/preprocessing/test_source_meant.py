"""Listings that cannot be meant are refused, what is certain is read as meant, and a few lines say what was found."""

import json
import shutil
from pathlib import Path

import pytest

from dit_scale.config import EncodeConfig, SourceConfig, load_config
from dit_scale.errors import InputError
from preprocessing.encode import encode
from preprocessing.sources import Source, list_source, summary
from tests.preprocessing.images import draw_tree, encoded, picture, tar_of, write_tar

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE = encoded(picture(0))


def _listed(path: Path, **settings: object) -> Source:
    return list_source(SourceConfig(path=str(path), **settings))  # type: ignore[arg-type]


def _write(root: Path, *names: str) -> Path:
    """Write images, and empty files where a name has another ending."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE if Path(name).suffix in (".png", ".JPEG") else b"")
    return root


def _labels(source: Source) -> dict[str, int]:
    return {source.name(i): source.label(i) for i in range(len(source))}


def test_imagenet_as_downloaded_is_refused_above_its_training_folder(tmp_path: Path) -> None:
    train = "ILSVRC/Data/CLS-LOC/train"
    _write(
        tmp_path,
        f"{train}/n01440764/a.JPEG",
        f"{train}/n01443537/b.JPEG",
        "ILSVRC/Annotations/CLS-LOC/train/n01440764/a.xml",
    )
    _write(tmp_path, "ILSVRC/Data/CLS-LOC/val/v.JPEG", "ILSVRC/Data/CLS-LOC/test/t.JPEG", "ILSVRC/ImageSets/x.txt")
    for level in ("", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"):
        with pytest.raises(InputError, match=rf"did you mean source.path={tmp_path}/{train}\? \(source.check_labels"):
            _listed(tmp_path / level)
    assert _listed(tmp_path / train).class_names == ["n01440764", "n01443537"]
    assert _listed(tmp_path / "ILSVRC/Data/CLS-LOC", check_labels=False).class_names == ["test", "train", "val"]


@pytest.mark.parametrize(
    ("files", "meant"),
    [
        (("train/a/1.png", "val/a/1.png"), "train"),
        (("test/a/1.png", "Training/b/1.png"), "Training"),
        (("valid_64x64/1.png", "train_64x64/1.png"), None),
        (("train/1.png", "about/x.txt"), None),
        (("data/val/a/1.png", "data/train/a/1.png"), "data/train"),
        (("train/x.tar", "val/x.tar"), "train"),
        (("train/n01443537/images/1.JPEG", "train/n01443538/images/1.JPEG", "wnids.txt"), "train"),
        (("flowers/rose/1.png", "flowers/tulip/1.png"), "flowers"),
        (("ant/wild/1.png", "bee/wild/1.png"), None),
    ],
)
def test_splits_and_folders_of_folders_are_no_classes(
    tmp_path: Path, files: tuple[str, ...], meant: str | None
) -> None:
    _write(tmp_path, *files)
    message = rf"did you mean source.path={tmp_path}/{meant}\? \(" if meant else r"; give [^;]+ \(source.check_labels=f"
    with pytest.raises(InputError, match=message):
        _listed(tmp_path)
    if files[0].endswith(".png"):
        assert len(_listed(tmp_path, check_labels=False)) == sum(name.endswith(".png") for name in files)
        names = sorted({name.partition("/")[0] for name in files})
        (tmp_path / "names").write_text("\n".join(names))
        assert _listed(tmp_path, class_names=str(tmp_path / "names")).class_names == names


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.png", "bus/1.png"),  # a train
        ("ant/1.png", "ant/wild/2.png", "bee/2.png"),
        ("n01443537/images/1.JPEG", "n01443538/images/1.JPEG", "n01443537/boxes.txt"),  # Tiny ImageNet's
        ("00000/00000.png", "00009/00000.png"),
    ],
)
def test_folders_that_may_be_meant_are_taken(tmp_path: Path, files: tuple[str, ...]) -> None:
    assert len(_listed(_write(tmp_path, *files))) == sum(not name.endswith(".txt") for name in files)


def test_splits_are_no_classes_in_other_formats_either(tmp_path: Path) -> None:
    for name in ("train.tar", "val.tar"):
        (tmp_path / name).write_bytes(tar_of({"x.png": IMAGE}))
    with pytest.raises(InputError, match=r"would be splits \('train', 'val'\)"):
        _listed(tmp_path, format="class_tars")
    (tmp_path / "all.tar").write_bytes(
        tar_of({name: (tmp_path / name).read_bytes() for name in ("train.tar", "val.tar")})
    )
    with pytest.raises(InputError, match=r"would be splits"):
        _listed(tmp_path / "all.tar")
    _write(tmp_path, "x.png", "y.png")
    (tmp_path / "list.csv").write_text("path,label\nx.png,train\ny.png,val\n")
    with pytest.raises(InputError, match=r"would be splits"):
        _listed(tmp_path / "list.csv")
    assert _listed(tmp_path / "list.csv", check_labels=False).class_names == ["train", "val"]


def test_a_tar_of_class_folders_is_no_class(tmp_path: Path) -> None:
    for names in (("t/ant/x.png", "t/bee/x.png"), ("ant/x.png", "antlion/x.png")):
        (tmp_path / "all.tar").write_bytes(tar_of(dict.fromkeys(names, IMAGE)))
        with pytest.raises(InputError, match=r"tar of class 'all' .* only folders with images; unpack it"):
            _listed(tmp_path, format="class_tars")
    assert _listed(tmp_path, format="class_tars", check_labels=False).class_names == ["all"]
    (tmp_path / "all.tar").write_bytes(tar_of({"ant/x.png": IMAGE, "ant/wild/x.png": IMAGE}))
    assert len(_listed(tmp_path, format="class_tars")) == 2


def _edm(root: Path, labels: object) -> Path:
    _write(root, *(f"{number // 1000:05d}/img{number:08d}.png" for number in (0, 1, 1000)))
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


def test_a_folder_of_edm_has_the_labels_of_its_dataset_json(tmp_path: Path) -> None:
    pairs = [["00001/img00001000.png", 0], ["00000/img00000000.png", 2], ["00000/img00000001.png", 1]]
    source = _listed(_edm(tmp_path, pairs))
    assert source.class_names == ["0", "1", "2"]
    assert _labels(source) == dict(pairs)
    assert source.place(0).read() == IMAGE
    assert _listed(tmp_path / "dataset.json").digest() == source.digest()
    _write(tmp_path, "00001/img00001001.png")
    assert "left out: images that the list does not name (1)" in summary(_listed(tmp_path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"are blocks of 1,000 numbered images, not classes, and no dataset.json there holds labels"),
        ([["00000/img00000000.png", [0.5, 0.1]]], r"pair 1 of '.*dataset.json' has .* label \[0.5, 0.1\]; give a path"),
        ([["00000/img00000009.png", 0]], r"pair 1 of '.*' names '00000/img00000009.png', which is not in"),
        ([["00000/img-mean-std-00000000.npy", 0]], r"lists arrays \('00000/img-.*'\), which are latents already"),
        ([["00000/img00000000.png", 0], [1]], r"holds no list of labels"),
    ],
)
def test_folders_of_edm_without_labels_are_refused(tmp_path: Path, labels: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _listed(_edm(tmp_path, labels))


def test_blocks_of_numbered_images_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blocks of 1,000 numbered images"):  # FFHQ's
        _listed(_write(tmp_path, "00000/00000.png", "01000/01000.png"))
    assert _listed(tmp_path, check_labels=False).class_names == ["00000", "01000"]


@pytest.mark.parametrize("as_tars", [False, True])
def test_folders_with_numbers_for_names_are_in_the_order_of_the_numbers(tmp_path: Path, as_tars: bool) -> None:
    for number in range(12):
        if as_tars:
            (tmp_path / f"{number}.tar").write_bytes(tar_of({f"{number}_x.png": IMAGE}))
        else:
            _write(tmp_path, f"{number}/x.png")
    source = _listed(tmp_path)
    assert source.class_names == [str(number) for number in range(12)]
    assert all(name.startswith(f"{label}/") for name, label in _labels(source).items())
    assert "labels are places" not in summary(source)


def test_numbers_that_are_not_the_labels_are_told(tmp_path: Path) -> None:
    source = _listed(_write(tmp_path, "1/x.png", "2/x.png", "10/x.png"))
    assert source.class_names == ["1", "2", "10"]
    assert "labels are places in the order of the classes, not their names: class '1' is label 0" in summary(source)
    assert _listed(_write(tmp_path, "b/x.png")).class_names == ["1", "10", "2", "b"], "names are sorted as text"


def test_an_encoding_that_was_begun_in_another_order_does_not_change_its_labels(tmp_path: Path) -> None:
    tree, output = draw_tree(tmp_path / "tree", {"1": 2, "2": 2, "10": 2}), tmp_path / "out"
    (tmp_path / "old").write_text("1\n10\n2\n")  # the order of text, which was once the rule
    settings = [f"source.path={tree}", f"output={output}", "image_size=32", "decode_workers=0", "autoencoder.name=pca"]

    def run(*more: str) -> list[str]:
        manifest = encode(load_config(EncodeConfig, None, [*settings, *more]))
        assert manifest is not None
        return list(manifest.class_names)

    assert run(f"source.class_names={tmp_path / 'old'}") == ["1", "10", "2"]
    with pytest.raises(
        InputError, match=r'begun with class_names.1="10", now it is "2"; give source.class_names \(this'
    ):
        run()
    assert run(f"source.class_names={output}") == ["1", "10", "2"]


@pytest.mark.parametrize("format_", ["flat", "plain tar", "tars", "list"])
def test_labels_that_count_from_one_are_refused(tmp_path: Path, format_: str) -> None:
    _write(tmp_path / "images", "a.png", "b.png", "c.png")
    settings: dict[str, object] = {}
    path = tmp_path / "images"
    (tmp_path / "labels").write_text("1\n3\n2\n")
    if format_ == "flat":
        settings["labels"] = str(tmp_path / "labels")
    elif format_ == "plain tar":
        path = tmp_path / "x.tar"
        path.write_bytes(tar_of({f"{name}.png": IMAGE for name in "abc"}))
        settings["labels"] = str(tmp_path / "labels")
    elif format_ == "tars":
        path = tmp_path / "x.tar"
        write_tar(path, [(str(i), picture(i), str(i)) for i in (1, 2, 3)])
    else:
        path = path / "list.csv"
        path.write_text("path,label\na.png,1\nb.png,2\nc.png,3\n")
    with pytest.raises(
        InputError, match=r"count from 1 to 3, so that class 0 would have no image; write each label less"
    ):
        _listed(path, **settings)
    source = _listed(path, check_labels=False, **settings)
    assert source.images_per_class().tolist() == [0, 1, 1, 1]
    assert "without an image: 1 class, '0'" in summary(source)
    (tmp_path / "names").write_text("background\nant\nbee\ncow\n")
    assert len(_listed(path, class_names=str(tmp_path / "names"), **settings)) == 3


@pytest.mark.parametrize("first", [0, 1])
def test_the_devkits_ground_truth_is_in_an_order_of_its_own(tmp_path: Path, first: int) -> None:
    _write(tmp_path / "val", *(f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 12)))
    (tmp_path / "names").write_text((GOLDEN / "ilsvrc2012_wnids.txt").read_text() + "n99999999\n")
    labels = tmp_path / "labels"
    devkit = (490, 361, 171, 822, 297, 482, 13, 704, 599, 164, 649)
    by_wnid = (65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109)
    labels.write_text("\n".join(str(label - 1 + first) for label in devkit))
    for settings in ({}, {"class_names": str(tmp_path / "names")}):
        with pytest.raises(InputError, match=r"its 490 is n01751748, which is label 65\); give source.labels=LOC_val"):
            _listed(tmp_path / "val", labels=str(labels), **settings)
    labels.write_text("\n".join(map(str, by_wnid)))
    assert list(_labels(_listed(tmp_path / "val", labels=str(labels))).values()) == list(by_wnid)
    wnids = (GOLDEN / "ilsvrc2012_wnids.txt").read_text().split()
    assert wnids[65] == "n01751748"


def test_odd_endings_of_jpeg_are_taken_and_the_rest_is_counted(tmp_path: Path) -> None:
    _write(tmp_path, "a/1.png", "a/noending", "a/2.avif", "b/3.avif", "b/.DS_Store", "outside.png", "outside.md")
    for name in ("a/4.jfif", "a/5.JPE"):
        (tmp_path / name).write_bytes(encoded(picture(0), "JPEG"))
    source = _listed(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a/1.png", "a/4.jfif", "a/5.JPE"]
    lines = summary(source).splitlines()
    assert lines[0] == "found 3 images of 2 classes, from 'a' (label 0) to 'b' (label 1)"
    assert "without an image: 1 class, 'b'" in lines
    kinds = ("files without an ending", "hidden files", "images outside the class folders", ".md")
    assert source.left_out == {".avif": 2} | dict.fromkeys(kinds, 1)
    assert lines[-1].startswith("left out: .avif (2), ")
    (tmp_path / "labels").write_text("0\n" * 4)
    (tmp_path / "labels").rename(tmp_path / "labels.txt")
    flat = _listed(tmp_path, labels=str(tmp_path / "labels.txt"))
    assert flat.left_out == {".avif": 2, "files without an ending": 1, "hidden files": 1, ".md": 1, ".txt": 1}


def test_a_summary_never_prints_a_thousand_names(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"class-{number}").mkdir()
    for number in range(50):
        (tmp_path / "class-7" / f"x.kind{number}").touch()
    source = _listed(_write(tmp_path, "class-7/x.png", "class-8/x.png", "class-8/y.png"))
    assert "the smallest class with images has 1 ('class-7'), the largest 2 ('class-8')" in summary(source)
    assert "without an image: 298 classes, 'class-0', 'class-1', 'class-10', 'class-100', " in summary(source)
    assert "others (45)" in summary(source)
    assert len(summary(source)) < 500


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(str(i), picture(i), str(label)) for i, label in enumerate((2, 0, 2))])
    (tmp_path / "names").write_text("crane\ntench\ncrane\ncrane\n")
    said = summary(_listed(tmp_path / "x.tar", class_names=str(tmp_path / "names")))
    assert "the smallest class with images has 1 ('crane (0)'), the largest 2 ('crane (2)')" in said
    assert "without an image: 2 classes, 'tench', 'crane (3)'" in said


def test_ilsvrc2012_is_known_by_its_thousand_wnids(tmp_path: Path) -> None:
    wnids = (GOLDEN / "ilsvrc2012_wnids.txt").read_text().split()
    (tmp_path / "names").write_text("\n".join([wnids[1], wnids[0], *wnids[2:]]))
    for wnid in wnids:
        (tmp_path / "tree" / wnid).mkdir(parents=True)
    source = _listed(_write(tmp_path / "tree", "n01440764/x.JPEG"))
    assert "the classes are ILSVRC2012's 1,000, in their usual order" in summary(source)
    given = _listed(tmp_path / "tree", class_names=str(tmp_path / "names"))
    assert "ILSVRC2012's 1,000, but not in their usual order" in summary(given)
    shutil.rmtree(tmp_path / "tree" / wnids[-1])
    assert "ILSVRC" not in summary(_listed(tmp_path / "tree"))
    (tmp_path / "tree" / "n00000001").mkdir()
    assert "the classes are 1,000 wnids, but not ILSVRC2012's" in summary(_listed(tmp_path / "tree"))


def test_rank_zero_says_once_what_was_found_before_it_encodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = draw_tree(tmp_path / "tree", {"ant": 2, "bee": 1})
    settings = [f"source.path={tree}", f"output={tmp_path / 'out'}", "image_size=32", "decode_workers=0"]
    config = load_config(EncodeConfig, None, [*settings, "autoencoder.name=pca"])
    encode(config)
    errors = capsys.readouterr().err
    assert errors.index("found 3 images of 2 classes, from 'ant'") < errors.index("encoded 3/3")
    assert errors.count("found 3 images") == 1
    monkeypatch.setattr("preprocessing.encode.die_with_parent", lambda: None)
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    encode(config)
    assert "found" not in capsys.readouterr().err
