"""Listings that cannot be meant are refused, what is certain is read as meant, and a few lines say what was found."""

import json
import shutil
from pathlib import Path

import pytest

from dit_scale.config import EncodeConfig, load_config
from dit_scale.errors import InputError
from preprocessing.encode import encode
from preprocessing.sources import summary
from tests.preprocessing.images import draw_tree, encoded, picture, tar_of, write_tar
from tests.preprocessing.listing import IMAGE, labels_of, listed, write

GOLDEN = Path(__file__).parents[1] / "golden"


def _edm(root: Path, labels: object) -> Path:
    write(root, *(f"{number // 1000:05d}/img{number:08d}.png" for number in (0, 1, 1000)))
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


def test_a_folder_of_edm_has_the_labels_of_its_dataset_json(tmp_path: Path) -> None:
    pairs = [["00001/img00001000.png", 0], ["00000/img00000000.png", 2], ["00000/img00000001.png", 1]]
    source = listed(_edm(tmp_path, pairs))
    assert source.class_names == ["0", "1", "2"]
    assert labels_of(source) == dict(pairs)
    assert source.place(0).read() == IMAGE
    assert listed(tmp_path / "dataset.json").digest() == source.digest()
    write(tmp_path, "00001/img00001001.png")
    assert "left out: images that the list does not name (1)" in summary(listed(tmp_path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"are blocks of 1,000 numbered images, not classes, and no dataset.json there holds labels"),
        ([["00000/img00000000.png", [0.5, 0.1]]], r"pair 1 of '.*dataset.json' has .* label \[0.5, 0.1\]; give a path"),
        ([["00000/img00000009.png", 0]], r"pair 1 of '.*' names '00000/img00000009.png', which is not in"),
        ([["00000/img-mean-std-00000000.npy", 0]], r"lists arrays \('00000/img-.*'\), which are latents already"),
        (
            [["00000/img00000000.png", 0], [1]],
            r"pair 2 of '.*' holds no path and label; write {.*dataset_tool.py, or",
        ),
        (
            [["00000/img00000000.png", 0], 1],
            r"is not a list of EDM's: expected 'labels.1' to be a list, found 1;",
        ),
    ],
)
def test_folders_of_edm_without_labels_are_refused(tmp_path: Path, labels: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        listed(_edm(tmp_path, labels))


def test_blocks_of_numbered_images_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blocks of 1,000 numbered images"):  # FFHQ's
        listed(write(tmp_path, "00000/00000.png", "01000/01000.png"))
    assert listed(tmp_path, check_labels=False).class_names == ["00000", "01000"]


@pytest.mark.parametrize("as_tars", [False, True])
def test_folders_with_numbers_for_names_are_in_the_order_of_the_numbers(tmp_path: Path, as_tars: bool) -> None:
    for number in range(12):
        if as_tars:
            (tmp_path / f"{number}.tar").write_bytes(tar_of({f"{number}_x.png": IMAGE}))
        else:
            write(tmp_path, f"{number}/x.png")
    source = listed(tmp_path)
    assert source.class_names == [str(number) for number in range(12)]
    assert all(name.startswith(f"{label}/") for name, label in labels_of(source).items())
    assert "labels are places" not in summary(source)


def test_numbers_that_are_not_the_labels_are_told(tmp_path: Path) -> None:
    source = listed(write(tmp_path, "1/x.png", "2/x.png", "10/x.png"))
    assert source.class_names == ["1", "2", "10"]
    assert "labels are places in the order of the classes, not their names: class '1' is label 0" in summary(source)
    mixed = listed(write(tmp_path, "b/x.png"))
    assert mixed.class_names == ["1", "10", "2", "b"], "names are sorted as text"
    assert "which is that of text: class '10' is label 1, before '2'; a file of class names gives" in summary(mixed)


def test_a_folder_without_images_or_of_a_system_does_not_change_the_order(tmp_path: Path) -> None:
    numbers = [str(number) for number in range(12)]
    write(tmp_path, *(f"{number}/x.png" for number in numbers), "__MACOSX/3/x.png", "3/@eaDir/x.png", ".thumbs/x.png")
    for name in ("lost+found", "other"):
        (tmp_path / name).mkdir()
    source = listed(tmp_path)
    assert source.class_names == [*numbers, "other"]
    assert list(labels_of(source)) == sorted(f"{number}/x.png" for number in numbers)
    assert all(name.startswith(f"{label}/") for name, label in labels_of(source).items())
    assert "without an image: 1 class, 'other'" in summary(source)
    assert source.left_out["hidden files"] == 4


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"class_{number}" for number in range(12)], "class 'class_11' is label 3, before 'class_2'"),
        ([f"{number}_name" for number in range(12)], "class '11_name' is label 2, before '1_name'"),
        ([f"class_{number:02d}" for number in range(12)], None),
        (["ant", "n01440764", "n01443537"], None),
        (["a10", "b2"], None),
    ],
)
def test_numbers_in_names_that_are_not_in_order_are_told(tmp_path: Path, names: list[str], said: str | None) -> None:
    """The labels stay those of text: a model that is fine-tuned may have them."""
    source = listed(write(tmp_path, *(f"{name}/x.png" for name in names)))
    assert source.class_names == sorted(names)
    assert said is None or f"which is that of text: {said}; a file of class names gives another" in summary(source)
    assert ("labels are places" in summary(source)) == (said is not None)


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
    write(tmp_path / "images", "a.png", "b.png", "c.png")
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
        listed(path, **settings)
    source = listed(path, check_labels=False, **settings)
    assert source.images_per_class().tolist() == [0, 1, 1, 1]
    assert "without an image: 1 class, '0'" in summary(source)
    (tmp_path / "names").write_text("background\nant\nbee\ncow\n")
    assert len(listed(path, class_names=str(tmp_path / "names"), **settings)) == 3


@pytest.mark.parametrize("first", [0, 1])
def test_the_devkits_ground_truth_is_in_an_order_of_its_own(tmp_path: Path, first: int) -> None:
    write(tmp_path / "val", *(f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 12)))
    (tmp_path / "names").write_text((GOLDEN / "ilsvrc2012_wnids.txt").read_text() + "n99999999\n")
    labels = tmp_path / "labels"
    devkit = (490, 361, 171, 822, 297, 482, 13, 704, 599, 164, 649)
    by_wnid = (65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109)
    labels.write_text("\n".join(str(label - 1 + first) for label in devkit))
    for settings in ({}, {"class_names": str(tmp_path / "names")}):
        with pytest.raises(InputError, match=r"its 490 is n01751748, which is label 65\); give source.labels=LOC_val"):
            listed(tmp_path / "val", labels=str(labels), **settings)
    labels.write_text("\n".join(map(str, by_wnid)))
    assert list(labels_of(listed(tmp_path / "val", labels=str(labels))).values()) == list(by_wnid)
    wnids = (GOLDEN / "ilsvrc2012_wnids.txt").read_text().split()
    assert wnids[65] == "n01751748"


def test_odd_endings_of_jpeg_are_taken_and_the_rest_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "a/noending", "a/2.avif", "b/3.avif", "b/.DS_Store", "outside.png", "outside.md")
    for name in ("a/4.jfif", "a/5.JPE"):
        (tmp_path / name).write_bytes(encoded(picture(0), "JPEG"))
    source = listed(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a/1.png", "a/4.jfif", "a/5.JPE"]
    lines = summary(source).splitlines()
    assert lines[0] == "found 3 images of 2 classes, from 'a' (label 0) to 'b' (label 1)"
    assert "without an image: 1 class, 'b'" in lines
    kinds = ("files without an ending", "hidden files", "images outside the class folders", ".md")
    assert source.left_out == {".avif": 2} | dict.fromkeys(kinds, 1)
    assert lines[-1].startswith("left out: .avif (2), ")
    (tmp_path / "labels").write_text("0\n" * 4)
    (tmp_path / "labels").rename(tmp_path / "labels.txt")
    flat = listed(tmp_path, labels=str(tmp_path / "labels.txt"))
    assert flat.left_out == {".avif": 2, "files without an ending": 1, "hidden files": 1, ".md": 1, ".txt": 1}


def test_a_summary_never_prints_a_thousand_names(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"class-{number}").mkdir()
    for number in range(50):
        (tmp_path / "class-7" / f"x.kind{number}").touch()
    source = listed(write(tmp_path, "class-7/x.png", "class-8/x.png", "class-8/y.png"))
    assert "the smallest class with images has 1 ('class-7'), the largest 2 ('class-8')" in summary(source)
    assert "without an image: 298 classes, 'class-0', 'class-1', 'class-10', 'class-100', " in summary(source)
    assert "others (45)" in summary(source)
    assert len(summary(source)) < 700


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(str(i), picture(i), str(label)) for i, label in enumerate((2, 0, 2))])
    (tmp_path / "names").write_text("crane\ntench\ncrane\ncrane\n")
    said = summary(listed(tmp_path / "x.tar", class_names=str(tmp_path / "names")))
    assert "the smallest class with images has 1 ('crane (0)'), the largest 2 ('crane (2)')" in said
    assert "without an image: 2 classes, 'tench', 'crane (3)'" in said


def test_ilsvrc2012_is_known_by_its_thousand_wnids(tmp_path: Path) -> None:
    wnids = (GOLDEN / "ilsvrc2012_wnids.txt").read_text().split()
    (tmp_path / "names").write_text("\n".join([wnids[1], wnids[0], *wnids[2:]]))
    for wnid in wnids:
        (tmp_path / "tree" / wnid).mkdir(parents=True)
    source = listed(write(tmp_path / "tree", "n01440764/x.JPEG"))
    assert "the classes are ILSVRC2012's 1,000, in their usual order" in summary(source)
    given = listed(tmp_path / "tree", class_names=str(tmp_path / "names"))
    assert "ILSVRC2012's 1,000, but not in their usual order" in summary(given)
    shutil.rmtree(tmp_path / "tree" / wnids[-1])
    assert "ILSVRC" not in summary(listed(tmp_path / "tree"))
    (tmp_path / "tree" / "n00000001").mkdir()
    assert "the classes are 1,000 wnids, but not ILSVRC2012's" in summary(listed(tmp_path / "tree"))


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
    assert f"3 records of 2 classes in 1 shard in {tmp_path / 'out'}, 0 images rejected, fingerprint " in errors
    monkeypatch.setattr("preprocessing.encode.die_with_parent", lambda: None)
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    encode(config)
    assert "found" not in capsys.readouterr().err


@pytest.mark.parametrize("is_output_there", [False, True])
def test_a_refused_encode_leaves_nothing_behind(tmp_path: Path, is_output_there: bool) -> None:
    output = tmp_path / "a" / "out"
    if is_output_there:
        output.mkdir(parents=True)
    write(tmp_path / "tree", "train/x.png", "val/x.png")
    settings = [f"source.path={tmp_path / 'tree'}", f"output={output}", "image_size=32", "decode_workers=0"]
    for more, said in (
        (["autoencoder.name=pca"], "would be splits"),
        ([f"autoencoder.name={tmp_path / 'tree'}", "source.check_labels=false"], "tree"),
    ):
        with pytest.raises(InputError, match=said):
            encode(load_config(EncodeConfig, None, [*settings, *more]))
        assert output.exists() == is_output_there
        assert (tmp_path / "a").exists() == is_output_there
        assert not is_output_there or not any(output.iterdir())
    encode(load_config(EncodeConfig, None, [*settings, "autoencoder.name=pca", "source.check_labels=false"]))
    before = sorted(path.name for path in output.rglob("*"))
    with pytest.raises(InputError, match="would be splits"):
        encode(load_config(EncodeConfig, None, [*settings, "autoencoder.name=pca"]))
    assert sorted(path.name for path in output.rglob("*")) == before
