"""Folders and tars that are no classes, but splits, folders of folders or a folder of images beside their labels."""

import re
from pathlib import Path

import pytest

from dit_scale.errors import InputError
from tests.preprocessing.images import tar_of
from tests.preprocessing.listing import IMAGE, labels_of, listed, write


def test_imagenet_as_downloaded_is_refused_above_its_training_folder(tmp_path: Path) -> None:
    train = "ILSVRC/Data/CLS-LOC/train"
    write(
        tmp_path,
        f"{train}/n01440764/a.JPEG",
        f"{train}/n01443537/b.JPEG",
        "ILSVRC/Annotations/CLS-LOC/train/n01440764/a.xml",
    )
    write(tmp_path, "ILSVRC/Data/CLS-LOC/val/v.JPEG", "ILSVRC/Data/CLS-LOC/test/t.JPEG", "ILSVRC/ImageSets/x.txt")
    for level in ("", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"):
        with pytest.raises(InputError, match=rf"did you mean source.path={tmp_path}/{train}\? \(source.check"):
            listed(tmp_path / level)
    assert listed(tmp_path / train).class_names == ["n01440764", "n01443537"]
    assert listed(tmp_path / "ILSVRC/Data/CLS-LOC", check_labels=False).class_names == ["test", "train", "val"]


@pytest.mark.parametrize(
    ("files", "meant"),
    [
        (("train/a/1.png", "val/a/1.png"), "train"),
        (("test/a/1.png", "Training/b/1.png"), "Training"),
        (("valid_64x64/1.png", "train_64x64/1.png"), None),
        (("train/1.png", "about/x.txt"), None),
        (("data/val/a/1.png", "data/train/a/1.png"), "data/train"),
        (("train/x.tar", "val/x.tar"), "train"),
        (("imagenet_train/a/1.png", "imagenet_val/a/1.png"), "imagenet_train"),
        (("images_train/1.png", "images_val/1.png"), None),
        (("seg_train/1.png", "seg_test/1.png"), None),
        (("split_train/1.png", "split_val/1.png"), None),
        (("train_blurred/1.png", "val_blurred/1.png"), None),
        (("x-train-64/1.png", "x-val-64/1.png", "x-more-64/1.png"), None),
        (("ImageNetTrain/1.png", "ImageNetVal/1.png"), None),
        (("trainA/1.png", "trainB/1.png"), None),
        (("trn/1.png", "tst/1.png"), None),
        (("train/1.png", "unlabeled/1.png"), None),
        (("extra/a/1.png", "train/a/1.png"), "train"),
        (("train/n01443537/images/1.JPEG", "train/n01443538/images/1.JPEG", "wnids.txt"), "train"),
        (("flowers/rose/1.png", "flowers/tulip/1.png"), "flowers"),
        (("ant/wild/1.png", "bee/wild/1.png"), None),
    ],
)
def test_splits_and_folders_of_folders_are_no_classes(
    tmp_path: Path, files: tuple[str, ...], meant: str | None
) -> None:
    write(tmp_path, *files)
    message = rf"did you mean source.path={tmp_path}/{meant}\? \(" if meant else r"; give [^;]+ \(source.check_labels=f"
    with pytest.raises(InputError, match=message):
        listed(tmp_path)
    if files[0].endswith(".png"):
        assert len(listed(tmp_path, check_labels=False)) == sum(name.endswith(".png") for name in files)
        names = sorted({name.partition("/")[0] for name in files})
        (tmp_path / "names").write_text("\n".join(names))
        assert listed(tmp_path, class_names=str(tmp_path / "names")).class_names == names


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.png", "bus/1.png"),  # a train
        tuple(f"{name}/1.png" for name in ("train", "toy train", *map(str, range(200)))),
        ("steam_train/1.png", "bullet_train/1.png"),
        ("toy_train/1.png", "toy_bus/1.png"),
        ("steam_train/1.png",),
        ("test/1.png", *(f"{number}/1.png" for number in range(30))),
        ("extra/1.png", "unlabeled/1.png"),
        ("images/1.png", "drawings/1.png"),
        ("ant/1.png", "ant/wild/2.png", "bee/2.png"),
        ("n01443537/images/1.JPEG", "n01443538/images/1.JPEG", "n01443537/boxes.txt"),  # Tiny ImageNet's
        ("00000/00000.png", "00009/00000.png"),
    ],
)
def test_folders_that_may_be_meant_are_taken(tmp_path: Path, files: tuple[str, ...]) -> None:
    assert len(listed(write(tmp_path, *files))) == sum(not name.endswith(".txt") for name in files)


def test_splits_are_no_classes_in_other_formats_either(tmp_path: Path) -> None:
    for name in ("train.tar", "val.tar"):
        (tmp_path / name).write_bytes(tar_of({"x.png": IMAGE}))
    with pytest.raises(InputError, match=r"would be splits \('train', 'val'\)"):
        listed(tmp_path, format="class_tars")
    (tmp_path / "all.tar").write_bytes(
        tar_of({name: (tmp_path / name).read_bytes() for name in ("train.tar", "val.tar")})
    )
    with pytest.raises(InputError, match=r"would be splits"):
        listed(tmp_path / "all.tar")
    write(tmp_path, "x.png", "y.png")
    (tmp_path / "list.csv").write_text("path,label\nx.png,train\ny.png,val\n")
    with pytest.raises(InputError, match=r"would be splits"):
        listed(tmp_path / "list.csv")
    assert listed(tmp_path / "list.csv", check_labels=False).class_names == ["train", "val"]


@pytest.mark.parametrize(
    ("stems", "splits"),
    [
        (("train-0000", "val-0000"), "'train', 'val'"),
        (("imagenet1k-train-0000", "imagenet1k-validation-00"), "'imagenet1k-train', 'imagenet1k-validation'"),
        (("d-train-00-of-02", "d-train-01-of-02", "d-test-00-of-01"), "'d-test', 'd-train'"),
        (("train_32x32", "val_32x32"), "'train_32x32', 'val_32x32'"),
        (("train0", "extra0"), "'extra', 'train'"),
        (("train-0000", "train-0001"), None),
        (("00000", "00001"), None),
        (("train-clean-0", "train-other-0"), None),
    ],
)
def test_tars_of_several_splits_are_refused(tmp_path: Path, stems: tuple[str, ...], splits: str | None) -> None:
    for number, stem in enumerate(stems):
        (tmp_path / f"{stem}.tar").write_bytes(tar_of({f"{number}.png": IMAGE, f"{number}.cls": b"0"}))
    (tmp_path / "names").write_text("ant\n")
    if splits:
        for given in ({}, {"class_names": str(tmp_path / "names")}):
            with pytest.raises(InputError, match=rf"the tars in '{tmp_path}' belong to several splits \({splits}\); m"):
                listed(tmp_path, **given)
    assert len(listed(tmp_path, check_labels=not splits)) == len(stems)
    assert len(listed(tmp_path / f"{stems[0]}.tar")) == 1


def test_a_folder_of_images_beside_their_labels_is_no_class(tmp_path: Path) -> None:
    """Tiny ImageNet's val; the sentence's settings work."""
    write(tmp_path, "images/val_0.JPEG", "images/val_1.JPEG", "parts/x.md")
    (tmp_path / "val_annotations.txt").write_text("val_0.JPEG\tn01443537\t0\t32\nval_1.JPEG\tn01440764\t1\t2\n")
    with pytest.raises(InputError, match=r"the one class folder of '.*' is 'images', which says nothing") as caught:
        listed(tmp_path)
    path, labels = re.findall(r"source.path=(\S+) source.labels=(\S+)", str(caught.value))[0]
    source = listed(Path(path), labels=labels)
    assert source.class_names == ["n01440764", "n01443537"]
    assert labels_of(source) == {"val_0.JPEG": 1, "val_1.JPEG": 0}
    assert listed(tmp_path, check_labels=False).images_per_class().tolist() == [2, 0]
    (tmp_path / "names").write_text("images\nparts\n")
    with pytest.raises(InputError, match=rf"source.path={tmp_path}/images source.labels=FILE with a line an image "):
        listed(write(tmp_path, "about.txt"))
    assert len(listed(tmp_path, class_names=str(tmp_path / "names"))) == 2
    for name in ("imgs", "jpg", "images1024x1024", "data"):
        (tmp_path / "images").rename(tmp_path / name)
        with pytest.raises(InputError, match=f"is '{name}', which says nothing"):
            listed(tmp_path)
        (tmp_path / name).rename(tmp_path / "images")


def test_a_class_whose_images_lie_deeper_than_those_of_the_others(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "cow/x/2.png", "dog/3.png")
    said = r"class folder 'cow' of '.*' holds no image itself, only folders with images \('x'\), and 'cat' beside it "
    with pytest.raises(InputError, match=rf"{said}holds its own; move the images of 'cow' up into it \(source.check"):
        listed(tmp_path)
    assert listed(tmp_path, check_labels=False).images_per_class().tolist() == [1, 1, 1]
    with pytest.raises(InputError, match=rf"up into it, or give source.path={tmp_path}/cow where they are the classes"):
        listed(write(tmp_path, "cow/y/2.png"))
    assert listed(tmp_path / "cow").class_names == ["x", "y"]


def test_a_tar_of_class_folders_is_no_class(tmp_path: Path) -> None:
    for names in (("t/ant/x.png", "t/bee/x.png"), ("ant/x.png", "antlion/x.png")):
        (tmp_path / "all.tar").write_bytes(tar_of(dict.fromkeys(names, IMAGE)))
        with pytest.raises(InputError, match=r"tar of class 'all' .* only folders with images; unpack it"):
            listed(tmp_path, format="class_tars")
    assert listed(tmp_path, format="class_tars", check_labels=False).class_names == ["all"]
    (tmp_path / "all.tar").write_bytes(tar_of({"ant/x.png": IMAGE, "ant/wild/x.png": IMAGE}))
    assert len(listed(tmp_path, format="class_tars")) == 2
