"""Sets of images: the same pixels from a folder and from an .npz; one sentence for each kind of bad input."""

import json
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
        ("empty", "holds no .png, .jpg, .jpeg; give"),
        ("absent", "is neither a folder nor a file"),
        ("no arr_0", "has no arr_0; give"),
        ("float", "is float64 [6, 16, 16, 3]; give images as uint8"),
        ("channels first", "is uint8 [6, 3, 16, 16]; give images as uint8"),
        ("objects", "is pickled objects; give images as uint8"),
        ("cut npz", "is not a whole .npz"),
        ("flipped npz", "is not a whole .npz"),
        ("npy", "is not a whole .npz"),
    ],
)
def test_bad_input_is_said_in_one_sentence(kind: str, sentence: str, tmp_path: Path) -> None:
    path = spoil(kind, tmp_path)
    with pytest.raises(InputError) as caught:
        content(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
