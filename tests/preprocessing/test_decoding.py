"""Decoding: images of every kind as the recipe says, or a reason; never a picture that is silently wrong."""

import os
import re
import subprocess
import sys
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from dit_scale.config import SourceConfig
from dit_scale.errors import Failure
from preprocessing.decoding import Decoder, decode_image, open_decoder
from preprocessing.sources import Place, Source, list_source
from preprocessing.transforms import centre_crop
from tests.preprocessing.images import draw_tree, encoded, picture

SIZE = 32


def _decoded(content: bytes, folder: Path, **settings: bool) -> np.ndarray | str:
    path = folder / "image"
    path.write_bytes(content)
    return decode_image(Place(path, 0, -1), SIZE, **settings)


def _rgb(image: Image.Image) -> np.ndarray:
    return centre_crop(image.convert("RGB"), SIZE)


def _with_alpha() -> Image.Image:
    image = picture(1).convert("RGBA")
    image.putalpha(picture(2).convert("L"))
    return image


def _palette_with_transparency() -> bytes:
    return encoded(picture(1).quantize(16), transparency=bytes(range(0, 256, 16)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(picture(1).convert("L")), _rgb(picture(1).convert("L"))),
        (encoded(picture(1).convert("1")), _rgb(picture(1).convert("1"))),
        (encoded(picture(1).quantize(16)), _rgb(picture(1).quantize(16))),
        (_palette_with_transparency(), _rgb(picture(1).quantize(16))),
        (encoded(picture(1).quantize(16), transparency=3), _rgb(picture(1).quantize(16))),
        (encoded(_with_alpha()), _rgb(picture(1))),
        (encoded(_with_alpha().convert("LA")), _rgb(picture(1).convert("L"))),
        (encoded(_with_alpha(), "WEBP", lossless=True, exact=True), _rgb(picture(1))),
        (encoded(picture(1), "BMP"), _rgb(picture(1))),
        (encoded(picture(1), "PPM"), _rgb(picture(1))),
        (encoded(picture(1), "TIFF", compression="tiff_lzw"), _rgb(picture(1))),
    ],
    ids=["L", "1", "P", "P-bytes", "P-index", "RGBA", "LA", "WEBP", "BMP", "PPM", "TIFF"],
)
def test_images_of_every_mode_become_rgb(tmp_path: Path, content: bytes, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(_decoded(content, tmp_path), expected)


def test_cmyk_jpegs_are_converted(tmp_path: Path) -> None:
    content = encoded(picture(1).convert("CMYK"), "JPEG", quality=95)
    decoded = _decoded(content, tmp_path)
    np.testing.assert_array_equal(decoded, _rgb(Image.open(tmp_path / "image")))
    assert np.abs(decoded.astype(int) - _rgb(picture(1))).mean() < 4


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path: Path, format_: str) -> None:
    grey = np.arange(SIZE * SIZE, dtype=np.uint32).reshape(SIZE, SIZE) * 64 + 5
    content = encoded(Image.fromarray(grey.astype(np.uint16)), format_)
    expected = np.round(grey / 257).astype(np.uint8)
    np.testing.assert_array_equal(_decoded(content, tmp_path), expected[..., None].repeat(3, -1))


def test_sixteen_bit_rgb_png(tmp_path: Path) -> None:
    rgb = np.asarray(picture(1, SIZE, SIZE))
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb.astype(np.uint16) * 257)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = SIZE.to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(_decoded(png, tmp_path), rgb)


def test_a_large_profile_or_text_is_no_reason_to_reject_a_png(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 3_000_000, zip=True)
    plain = _decoded(encoded(picture(1)), tmp_path)
    for options in ({"icc_profile": bytes(3_000_000)}, {"pnginfo": text}):
        np.testing.assert_array_equal(_decoded(encoded(picture(1), **options), tmp_path), plain)
    bomb = _decoded(encoded(picture(1), icc_profile=bytes(65 * 2**20)), tmp_path)
    assert isinstance(bomb, str), "what unpacks to more memory than an image needs is still rejected"


@pytest.mark.parametrize("format_", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path, format_: str) -> None:
    frames = [picture(i, SIZE, SIZE).quantize(64).convert("RGB") for i in range(3)]
    content = encoded(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(_decoded(content, tmp_path), np.asarray(frames[0]))


def test_rotation_by_exif_only_where_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture(1), "JPEG", exif=exif.tobytes())
    stored = Image.open(_written(tmp_path / "x.jpg", content)).convert("RGB")
    np.testing.assert_array_equal(_decoded(content, tmp_path), centre_crop(stored, SIZE))
    turned = centre_crop(stored.transpose(Image.Transpose.ROTATE_270), SIZE)
    np.testing.assert_array_equal(_decoded(content, tmp_path, exif_rotation=True), turned)
    plain = encoded(picture(1), "JPEG")
    np.testing.assert_array_equal(_decoded(plain, tmp_path), _decoded(plain, tmp_path, exif_rotation=True))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("are_allowed", [False, True])
def test_half_a_picture_is_none(
    tmp_path: Path, format_: str, are_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", are_allowed)  # as some libraries do
    content = encoded(picture(2, 200, 150), format_)
    assert isinstance(_decoded(content, tmp_path), np.ndarray)
    for kept in (0.1, 0.5, 0.95):
        reason = _decoded(content[: int(kept * len(content))], tmp_path)
        assert isinstance(reason, str), f"{kept:.0%} of a {format_} was taken for a picture"
        assert "Error" in reason
    if format_ in ("JPEG", "PNG", "GIF"):  # a file whose end was never written
        assert isinstance(_decoded(content[: len(content) // 2] + bytes(len(content) // 2), tmp_path), str)


def _signed_tiff() -> bytes:
    return encoded(Image.fromarray(np.arange(400, dtype=np.int32).reshape(20, 20)), "TIFF")


def _inverted_tiff() -> bytes:
    return encoded(Image.fromarray(np.zeros((20, 20), np.uint16)), "TIFF", tiffinfo={262: 0})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty"),
        (b"no image at all", r"UnidentifiedImageError: it is none of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", r"UnidentifiedImageError"),
        (encoded(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"), r"values of mode F have no range"),
        (_signed_tiff(), r"values of mode I have no range"),
        (_inverted_tiff(), r"values of mode I;16 have no range"),
        (encoded(Image.new("1", (20000, 20000))), r"DecompressionBombError: .* exceeds limit"),
    ],
    ids=["empty", "text", "EPS", "float", "int32", "inverted", "bomb"],
)
def test_what_is_no_picture_gets_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    decoded = _decoded(content, tmp_path)
    assert isinstance(decoded, str)
    assert re.search(reason, decoded), decoded
    assert decoded == _decoded(content, tmp_path), "a reason is the same each time"


def test_a_bomb_is_refused_though_a_library_lifted_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "more than 178956970" in _decoded(encoded(Image.new("1", (20000, 20000))), tmp_path)


def test_pillow_does_not_fill_the_console(tmp_path: Path) -> None:
    for i in range(3):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x03" + bytes([1, i]) * 10  # each broken in its own way
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG", exif=exif))
    (tmp_path / "p.png").write_bytes(_palette_with_transparency())
    Image.new("L", (12000, 9000)).save(tmp_path / "large.png", compress_level=1)  # Pillow warns of a bomb
    code = (
        "import sys, pathlib, numpy\nfrom preprocessing.decoding import decode_image\n"
        "from preprocessing.sources import Place\nfor path in map(pathlib.Path, sys.argv[1:]):\n"
        "  assert isinstance(decode_image(Place(path, 0, -1), 32, True), numpy.ndarray)"
    )
    paths = [str(path) for path in tmp_path.iterdir()]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_pool_decodes_in_order(tmp_path: Path) -> None:
    source = _tree(tmp_path)
    (tmp_path / "a" / "000.jpg").write_bytes(b"no image")
    order = [*range(59, -1, -1), 3]
    inline = list(Decoder(source, SIZE).decode(order))
    assert isinstance(inline[59], str)
    with open_decoder(source, SIZE, 2) as decoder:
        for image, expected in zip(decoder.decode(order), inline, strict=True):
            np.testing.assert_array_equal(image, expected)


def test_a_pool_turns_images_where_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "a").mkdir()
    picture(1).save(tmp_path / "a" / "x.jpg", exif=exif.tobytes())
    source = list_source(SourceConfig(path=str(tmp_path)))
    stored, turned = (decode_image(source.place(0), SIZE, rotates) for rotates in (False, True))
    assert not np.array_equal(stored, turned)
    for workers in (0, 1):
        with open_decoder(source, SIZE, workers, exif_rotation=True) as decoder:
            np.testing.assert_array_equal(next(decoder.decode([0])), turned)


def test_a_killed_decoder_is_one_clear_error(tmp_path: Path) -> None:
    source = _tree(tmp_path)
    with open_decoder(source, SIZE, 2) as decoder:
        images = decoder.decode(i % 60 for i in range(100_000))
        list(islice(images, 20))
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(workers[-1]), 9)
        with pytest.raises(Failure, match=r"a decoder process was killed, .* fewer decode_workers"):
            list(images)


def test_a_file_that_goes_away_is_no_rejected_image(tmp_path: Path) -> None:
    source = _tree(tmp_path)
    (tmp_path / "a" / "005.png").unlink()
    for workers in (0, 1):
        with (
            open_decoder(source, SIZE, workers) as decoder,
            pytest.raises(Failure, match=r"a/005.png' cannot be read \(No such file"),
        ):
            list(decoder.decode(range(60)))


def _tree(folder: Path) -> Source:
    return list_source(SourceConfig(path=str(draw_tree(folder, {"a": 30, "b": 30}))))


def test_processes_that_decode_do_not_import_torch() -> None:
    code = "import sys, preprocessing.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (1, 65000), (2, 40001), (65000, 3)])
def test_images_of_extreme_shape_become_the_square(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    square = decode_image(Place(_written(tmp_path / "x.png", encoded(image)), 0, -1), 256)
    assert isinstance(square, np.ndarray)
    assert square.shape == (256, 256, 3)


def test_the_centre_of_a_long_image_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in ((7, 400), (333, 9), (3, 500), (45, 46), (1, 300), (500, 20)):
        image = picture(1, width, height)
        whole = centre_crop(image, 64).astype(int)
        with monkeypatch.context() as patched:
            patched.setattr("preprocessing.transforms._MOST_RESIZED_PIXELS", 0)
            apart = np.abs(centre_crop(image, 64) - whole)
        assert apart.max() <= 2
        assert apart.mean() < 0.1
