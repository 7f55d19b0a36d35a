"""Render Debian's Noto colour emoji into a class-folder tree: `quickstart/images.py --out DIR [--size 64]`.

The pictures are drawings, labelled by Unicode's own subgroups, merged into twelve classes that one can tell
apart at 64 px. Near duplicates of people are left out: skin tones, hair, and the man of each role.
"""

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LABELS = Path("/usr/share/unicode/emoji/emoji-test.txt")
PACKAGES = ["fonts-noto-color-emoji", "unicode-data", "libfribidi0"]
GLYPH_POINTS = 109  # the one size at which the font stores its bitmaps
GLYPH_PIXELS = 136
MAX_IMAGES_PER_CLASS = 40  # few enough that a small model learns them all in minutes
SKIN_TONES = range(0x1F3FB, 0x1F400)
LINE = re.compile(r"(?P<codepoints>[0-9A-F ]+?) *; fully-qualified +# \S+ E\d+\.\d+ (?P<name>.+)")


class Rule(NamedTuple):
    """The regular expressions that an emoji's Unicode subgroup and the beginning of its name match."""

    subgroups: str
    names: str = ".*"


CLASSES = {
    "animals": Rule("animal-(mammal|bird|amphibian|reptile)|cat-face|monkey-face"),
    "buildings": Rule("place-(building|religious)"),
    "clocks": Rule("time", ".*(o’clock|-thirty)"),
    "faces": Rule("face-(?!costume).*"),
    "flags": Rule("country-flag"),
    "flowers": Rule("plant-.*"),
    "fruit": Rule("food-(fruit|vegetable)"),
    "hands": Rule("hand.*"),
    "hearts": Rule("heart"),
    "people": Rule("person(-role)?", "(?!man |.*:)"),
    "signs": Rule("keycap|alphanum|arrow|av-symbol|religion|zodiac"),
    "vehicles": Rule("transport-(ground|water|air)"),
}


def read_labels(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (subgroup, name, characters) of each fully-qualified emoji without a skin tone."""
    subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := LINE.match(line):
            codepoints = [int(codepoint, 16) for codepoint in match["codepoints"].split()]
            if not any(codepoint in SKIN_TONES for codepoint in codepoints):
                yield subgroup, match["name"], "".join(map(chr, codepoints))


def thin(items: list[str], limit: int) -> list[str]:
    """Keep at most `limit` items, evenly spaced, so that no class outweighs the others."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def choose(labels: Path, font: Path) -> dict[str, list[str]]:
    """Choose the emoji of each class, of those that the font draws as one glyph."""
    # Imported here: Pillow looks for libfribidi once, at this import, and `install` may just have brought it.
    from PIL import ImageFont

    face = ImageFont.truetype(str(font), GLYPH_POINTS)
    chosen: dict[str, list[str]] = {label: [] for label in CLASSES}
    for subgroup, name, text in read_labels(labels):
        for label, rule in CLASSES.items():
            if re.fullmatch(rule.subgroups, subgroup) and re.match(rule.names, name):
                chosen[label] += [text] if face.getlength(text) <= GLYPH_PIXELS else []
    return {label: thin(texts, MAX_IMAGES_PER_CLASS) for label, texts in chosen.items()}


def render(chosen: dict[str, list[str]], font: Path, size: int, out: Path) -> None:
    """Draw the chosen emoji as `out/CLASS/CODEPOINTS.png`, in a sibling folder renamed once complete."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), GLYPH_POINTS)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for label, texts in chosen.items():
        (partial / label).mkdir(parents=True)
        for text in texts:
            image = Image.new("RGB", (GLYPH_PIXELS, GLYPH_PIXELS), "white")
            ImageDraw.Draw(image).text((0, 4), text, font=face, embedded_color=True)  # the glyph is 136 x 128
            codepoints = "-".join(f"{ord(character):x}" for character in text)
            image.resize((size, size), Image.Resampling.LANCZOS).save(partial / label / f"{codepoints}.png")
    partial.rename(out)  # the last act: a killed run leaves no tree that looks whole


def missing(*files: Path) -> str:
    """Say what is missing to render emoji, or nothing."""
    absent = [str(path) for path in files if not path.is_file()]
    try:
        ctypes.CDLL("libfribidi.so.0")  # without it Pillow draws a flag as two letters
    except OSError:
        absent.append("libfribidi.so.0")
    return ", ".join(absent)


def install() -> None:
    """Install the Debian packages where this process may; whether it worked shows in `missing`."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    command = f"apt-get install -qq -y --no-install-recommends {' '.join(PACKAGES)}"
    script = f"export DEBIAN_FRONTEND=noninteractive; {command} || (apt-get update -qq && {command})"
    subprocess.run(script, shell=True, check=False, capture_output=True)


def main() -> None:
    """Render the tree, unless it is already there, and print how many images each class has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make: OUT/CLASS/CODEPOINTS.png")
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels (default: 64)")
    parser.add_argument("--font", type=Path, default=FONT, help="another copy of NotoColorEmoji.ttf")
    parser.add_argument("--labels", type=Path, default=LABELS, help="another copy of emoji-test.txt")
    arguments = parser.parse_args()
    out: Path = arguments.out.absolute()
    if present := {path.name for path in out.iterdir()} if out.is_dir() else set():
        if present != set(CLASSES):
            parser.error(f"{out} holds something else than this script's classes: choose another --out")
        print(f"{out} is already complete: nothing to do")
    else:
        if missing(arguments.font, arguments.labels):
            install()
        if absent := missing(arguments.font, arguments.labels):
            sys.stderr.write(
                f"No emoji to render ({absent} missing): install {' '.join(PACKAGES)} with apt-get as root, "
                "or run `make quickstart IMAGES=path` on a folder of your own images.\n"
            )
            sys.exit(2)
        out.parent.mkdir(parents=True, exist_ok=True)
        render(choose(arguments.labels, arguments.font), arguments.font, arguments.size, out)
    for label in CLASSES:
        print(f"{label:10} {len(list((out / label).glob('*.png'))):5}")
    print(f"{'total':10} {len(list(out.glob('*/*.png'))):5}")


if __name__ == "__main__":
    main()
