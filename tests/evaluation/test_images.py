"""Sets of images: the same pixels from a folder and from an .npz; one sentence for each kind of bad input."""

import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_scale.errors import InputError
from dit_scale.evaluation import open_images, own_protocol
from tests.evaluation.small import pictures, write_folder


def content(path: Path, batch_size: int = 3) -> np.ndarray:
    return np.concatenate(list(open_images(path).batches(batch_size)))


def test_a_folder_and_an_npz_hold_the_same_images(tmp_path: Path) -> None:
    images = pictures(range(10))
    write_folder(tmp_path / "folder", images)
    np.savez(tmp_path / "plain.npz", images, np.arange(10))  # ADM's samples hold labels, too
    np.savez_compressed(tmp_path / "packed.npz", arr_0=images)
    for name in ("folder", "plain.npz", "packed.npz"):
        found = open_images(tmp_path / name)
        assert (found.count, found.size) == (10, (16, 16))
        assert [len(batch) for batch in found.batches(4)] == [4, 4, 2]
        np.testing.assert_array_equal(content(tmp_path / name), images)


def test_a_folder_is_read_by_name_with_all_below_it(tmp_path: Path) -> None:
    images = pictures(range(3))
    Image.fromarray(images[2]).save(tmp_path / "c.png")
    write_folder(tmp_path / "a", images[:1])
    write_folder(tmp_path / "b", images[1:2])
    write_folder(tmp_path / ".hidden", images)
    np.testing.assert_array_equal(content(tmp_path), images)


def test_the_output_of_sampling_means_its_images(tmp_path: Path) -> None:
    images = pictures(range(4))
    write_folder(tmp_path / "images", images)
    (tmp_path / "protocol.json").write_text(json.dumps({"step": 7}))
    Image.new("RGB", (99, 9)).save(tmp_path / "grid.png")
    np.savez(tmp_path / "samples.npz", images)
    for path in (tmp_path, tmp_path / "images", tmp_path / "samples.npz"):
        np.testing.assert_array_equal(content(path), images)
        assert own_protocol(open_images(path)) == {"step": 7}
    assert own_protocol(open_images(write_folder(tmp_path / "others" / "deep", images))) is None


def test_a_folder_of_many_formats_is_used_whole_and_the_rest_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [Image.fromarray(image) for image in pictures(range(6))]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "linked").symlink_to(elsewhere)
    images[0].save(folder / "a.png")
    images[1].save(folder / "b.webp", lossless=True)
    images[2].save(folder / "deep" / "c.PNG")
    images[3].save(folder / "deep" / "d.bmp")
    images[4].save(elsewhere / "e.tiff")
    images[5].save(folder / "f.jpeg")
    for name in ("g.npy", "h.heic", "deep/i.HEIC", "j", "evaluation.json", ".hidden.png"):
        (folder / name).write_bytes(b"x")
    with caplog.at_level(logging.INFO):
        found = open_images(folder)
    assert found.files == {
        "used": {".png": 2, ".bmp": 1, ".jpeg": 1, ".tiff": 1, ".webp": 1},
        "left_out": {".heic": 2, ".npy": 1, "without ending": 1},
    }
    said = "6 images (2 .png, 1 .bmp, 1 .jpeg, 1 .tiff, 1 .webp), left out: 2 .heic, 1 .npy, 1 without ending"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"'{folder}': {said}")
    ]
    (read,) = found.batches(6)
    for number, place in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5)):  # by path; the JPEG is fifth
        np.testing.assert_array_equal(read[place], np.asarray(images[number]))


def test_names_that_are_not_utf8_have_a_digest(tmp_path: Path) -> None:
    Image.fromarray(pictures(range(1))[0]).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert len(open_images(tmp_path).digest()) == 16


def test_a_digest_tells_images_apart(tmp_path: Path) -> None:
    images = pictures(range(4))
    digests = {open_images(write_folder(tmp_path / "a", images)).digest()}
    assert open_images(write_folder(tmp_path / "b", images)).digest() in digests
    digests.add(open_images(write_folder(tmp_path / "c", images[::-1])).digest())
    (tmp_path / "b" / "000003.png").rename(tmp_path / "b" / "000004.png")
    digests.add(open_images(tmp_path / "b").digest())
    np.savez(tmp_path / "d.npz", images)
    digests.add(open_images(tmp_path / "d.npz").digest())
    assert len(digests) == 4


def cut(path: Path, keep: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])


def spoil(kind: str, folder: Path) -> Path:
    """Make bad input; return its path."""
    images, archive = pictures(range(6)), folder / "images.npz"
    write_folder(folder / "set", images)
    extra = folder / "set" / "extra.png"
    if kind in ("L", "RGBA", "P"):
        Image.new(kind, (16, 16)).save(extra)
    elif kind == "another size":
        Image.new("RGB", (16, 24)).save(extra)
    elif kind == "cut png":
        Image.fromarray(images[0]).save(extra)
        cut(extra, 0.5)
    elif kind == "two pages":
        pages = [Image.fromarray(image) for image in images[:2]]
        pages[0].save(folder / "set" / "extra.tiff", save_all=True, append_images=pages[1:])
    elif kind == "another kind":
        extra.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n")  # Pillow would start ghostscript
    elif kind == "link":
        (folder / "set" / "deep").symlink_to(folder / "set")
    elif kind == "zip":
        with zipfile.ZipFile(folder / "set.zip", "w") as archive_of_images:
            archive_of_images.write(folder / "set" / "000000.png", "000000.png")
        return folder / "set.zip"
    elif kind == "empty":
        (folder / "none").mkdir()
        return folder / "none"
    elif kind == "absent":
        return folder / "nowhere"
    else:
        arrays = {
            "no arr_0": {"images": images},
            "float": {"arr_0": images / 255.0},
            "channels first": {"arr_0": images.transpose(0, 3, 1, 2)},
            "objects": {"arr_0": np.array([{"pickled": 1}], dtype=object)},
        }
        np.savez(archive, **arrays.get(kind, {"arr_0": images}))
        if kind == "cut npz":
            cut(archive, 0.7)
        if kind == "flipped npz":
            whole = bytearray(archive.read_bytes())
            whole[1000] ^= 255
            archive.write_bytes(whole)
        if kind == "npy":
            np.save(folder / "images.npy", images)
            return folder / "images.npy"
        return archive
    return folder / "set"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("L", "extra.png' is L, not RGB; convert"),
        ("RGBA", "extra.png' is RGBA, not RGB; convert"),
        ("P", "extra.png' is P, not RGB; convert"),
        ("another size", "holds images of 16 x 24 and of 16 x 16 pixels"),
        ("cut png", "extra.png' cannot be decoded"),
        ("empty", "holds no image (.bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp); give"),
        ("two pages", "extra.tiff' holds several pictures; write each"),
        ("another kind", "extra.png' cannot be decoded"),
        ("absent", "is neither a folder nor a file"),
        ("no arr_0", "has no arr_0; give"),
        ("float", "is float64 [6, 16, 16, 3]; give images as uint8"),
        ("channels first", "is uint8 [6, 3, 16, 16]; give images as uint8"),
        ("objects", "is pickled objects; give images as uint8"),
        ("cut npz", "is not a whole .npz"),
        ("flipped npz", "is not a whole .npz"),
        ("npy", "is a .npy array, neither a folder of images nor an .npz"),
        ("zip", "is a zip archive, neither a folder of images nor an .npz of them; unpack it"),
        ("link", "is a link to a folder above itself"),
    ],
)
def test_bad_input_is_said_in_one_sentence(kind: str, sentence: str, tmp_path: Path) -> None:
    path = spoil(kind, tmp_path)
    with pytest.raises(InputError) as caught:
        content(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
