"""`dit-scale evaluate`: how far samples are from real images; a table, and a JSON that says how it was measured."""

import sys
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table

from dit_scale.distributed.runtime import World, device_of, set_threads
from dit_scale.documents import read_document
from dit_scale.errors import InputError
from dit_scale.evaluation import (
    RESULT,
    Evaluator,
    ImageSet,
    Reference,
    check_comparable,
    check_count,
    default_cache,
    load_extractor,
    load_reference,
    open_images,
    own_protocol,
    protocol_of,
    result_of,
    told,
)
from dit_scale.files import make_writable_folder, write_json
from dit_scale.progress import passed_on


def evaluate(
    samples: Path,
    reference: Path,
    features: str | None = None,
    weights: Path | None = None,
    batch_size: int = 32,
    cache: Path | None = None,
    out: Path | None = None,
    against: Path | None = None,
) -> None:
    """Measure, print a table and write the result; with ``against``, print the change from an earlier one."""
    world = World.from_environment()
    if world.world_size > 1:
        raise InputError(f"evaluate is one process, not {world.world_size}; start it without torchrun, or as one task")
    device = device_of(world)
    set_threads(world)
    before = _read_result(against) if against is not None else None
    images = open_images(samples)
    check_count(images.count, f"'{samples}'")
    drawn = own_protocol(images)
    out = out or _default_out(images)
    make_writable_folder(out.parent, "folder of the result")
    extractor = load_extractor(features, weights, device)
    if features is None and weights is None:
        _tell(f"without --weights: features of {extractor.name}; its Fréchet distance is not FID")
    real = load_reference(reference, extractor, cache or default_cache(), batch_size)
    _warn_of_sizes(images, real)
    evaluator = Evaluator(extractor, real)
    scores = evaluator.evaluate(passed_on("samples", images.batches(batch_size), images.count, "images", len))
    identity = {"xxh3": images.digest(), "images": images.count, "size": list(images.size), "files": images.files}
    protocol = protocol_of(evaluator, scores, identity | {"protocol": drawn})
    inputs = {"samples": str(samples), "reference": str(reference), "device": device}
    write_json(out, result_of(scores, protocol) | {"inputs": inputs})
    if before is not None:
        check_comparable(protocol, before["protocol"], str(against))
    kept = real.identity
    of_reference = told(kept["images"], kept.get("files")) if "images" in kept else "stored statistics"
    caption = f"samples: {told(images.count, images.files)}\nreference: {of_reference}"
    Console().print(_table(samples, scores.metrics, scores.spread, before["metrics"] if before else None, caption))
    for note in scores.notes:
        _tell(note)
    print(f"written to {out}", flush=True)


class _Result(TypedDict):
    metrics: dict[str, float]
    protocol: dict[str, Any]


def _read_result(path: Path) -> _Result:
    return read_document(path, _Result, "a result of dit-scale evaluate", f"give an {RESULT} that it wrote")


def _default_out(images: ImageSet) -> Path:
    """Return where the result goes: into the folder that holds the images, or beside their .npz."""
    if images.path.is_dir():
        return (images.path.parent if images.path.name == "images" else images.path) / RESULT
    return images.path.with_suffix(f".{RESULT}")


def _warn_of_sizes(images: ImageSet, reference: Reference) -> None:
    """Say that sizes differ: every network resizes its input, but what was resized from less is blurred."""
    if reference.size is not None and reference.size != images.size:
        sizes = (f"{width} x {height}" for width, height in (images.size, reference.size))
        _tell("samples are of {} pixels, the reference of {}: sharpness counts, too".format(*sizes))


def _table(
    samples: Path,
    metrics: dict[str, float],
    spread: dict[str, float | None],
    before: dict[str, float] | None,
    caption: str,
) -> Table:
    columns = ["metric", "value", "spread", *(["before", "change"] if before is not None else [])]
    table = Table(*columns, title=str(samples), caption=caption)
    for name, value in metrics.items():
        deviation = spread[name]
        row = [name, f"{value:.5g}", f"± {deviation:.2g}" if deviation is not None else "one part"]
        if before is not None:
            old = before.get(name)
            row += [f"{old:.5g}", f"{value - old:+.3g}"] if old is not None else ["", ""]
        table.add_row(*row)
    return table


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
