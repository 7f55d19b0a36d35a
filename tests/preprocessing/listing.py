"""Sources of a few files, and what a listing says of them."""

from pathlib import Path

from dit_scale.config import SourceConfig
from preprocessing.sources import Source, list_source
from tests.preprocessing.images import encoded, picture

IMAGE = encoded(picture(0))


def listed(path: Path, **settings: object) -> Source:
    """List a source."""
    return list_source(SourceConfig(path=str(path), **settings))  # type: ignore[arg-type]


def write(root: Path, *names: str) -> Path:
    """Write images, and empty files where a name has another ending."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE if Path(name).suffix in (".png", ".JPEG") else b"")
    return root


def labels_of(source: Source) -> dict[str, int]:
    """Return the label of each image by its name."""
    return {source.name(i): source.label(i) for i in range(len(source))}
