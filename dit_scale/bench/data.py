"""`dit-scale bench data`: records a second and core of this project's reader and of two others, side by side."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from dit_scale.bench.measure import Cost, Spread, in_rounds, one_thread
from dit_scale.bench.readers import BATCH_SIZE, Batches, OwnReader, Reader, StreamingReader, WebDatasetReader
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.bench.shards import link_first, write_synthetic
from dit_scale.data.manifest import Manifest
from dit_scale.data.mds import to_mds
from dit_scale.errors import Failure

OURS, UNVERIFIED, WITH_CROPS = "dit_scale", "dit_scale, unverified", "dit_scale, with crops"
WEBDATASET, STREAMING = "webdataset", "StreamingDataLoader"
_PACKAGES = ("dit_scale", "torch", "numpy", "webdataset", "mosaicml-streaming", "xxhash")


def bench_data(
    shards: Path | None, num_records: int, mirrors: int, rounds: int, json_path: Path | None, with_crops: bool = False
) -> dict[str, Any]:
    """Measure the readers on a folder's first shards, or on synthetic ones; print, write and return the figures.

    ``with_crops`` makes synthetic ones with crops; where there are crops, reading with them is measured, too.
    """
    origin = begin_report("data", _PACKAGES, json_path)
    with tempfile.TemporaryDirectory(prefix="dit-scale-bench-") as temporary, one_thread():
        folder, mds = Path(temporary) / "shards", Path(temporary) / "mds"
        if shards:
            manifest = link_first(shards, folder, num_records)
        else:
            manifest = write_synthetic(folder, num_records, mirrors, with_crops)
        with _open_readers(folder, mds, manifest) as readers:
            content = check_same(readers, manifest)  # and all files are in the page cache now
            costs = in_rounds({name: _epoch_of(reader) for name, reader in readers.items()}, rounds)
            results = [_result(name, readers[name], costs[name], manifest.num_records) for name in readers]
    settings = {
        "shards": str(shards or "synthetic"),
        "num_shards": len(manifest.shards),
        "records": manifest.num_records,
        "mirrors": manifest.mirrors,
        "mirror_bytes": manifest.layout.mirror_bytes,
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
    }
    report = origin | {"settings": settings, "content": content, "readers": results, "ratios": _ratios(costs)}
    _show(report)
    write_report(report, json_path)
    return report


@contextmanager
def _open_readers(folder: Path, mds: Path, manifest: Manifest) -> Iterator[dict[str, Reader]]:
    readers: dict[str, Reader] = {
        OURS: OwnReader(folder, verify=True),
        UNVERIFIED: OwnReader(folder, verify=False),
        WEBDATASET: WebDatasetReader(folder, manifest),
        STREAMING: StreamingReader(mds, to_mds(folder, mds)),
    }
    if manifest.crops:
        readers[WITH_CROPS] = OwnReader(folder, verify=True, with_crops=True)
    with ExitStack() as stack:
        for reader in readers.values():
            stack.callback(reader.close)
        yield readers


def check_same(readers: dict[str, Reader], manifest: Manifest) -> dict[str, Any]:
    """Return number and digest of the records, which must be the same by all readers."""
    contents = {name: _content(reader.epoch(mirror=False)) for name, reader in readers.items()}
    for name, content in contents.items():
        if content != contents[OURS] or content["records"] != manifest.num_records:
            raise Failure(
                f"{name} delivered {content}, {OURS} {contents[OURS]} of {manifest.num_records} records; what they "
                f"cost cannot be compared, so look to the shards (dit-scale verify) and to the versions"
            )
    return contents[OURS]


def _content(batches: Batches) -> dict[str, Any]:
    """Count records and add up their digests, each of moments and label, so that their order takes no part."""
    count, total = 0, 0
    for moments, labels in batches:
        for record, label in zip(moments.numpy(), labels.tolist(), strict=True):
            total += xxh3_64_intdigest(np.ascontiguousarray(record).data, seed=label)
            count += 1
    return {"records": count, "digest": f"{total % (1 << 64):016x}"}


def _epoch_of(reader: Reader) -> Callable[[], None]:
    def read() -> None:
        for _ in reader.epoch(mirror=True):
            pass

    return read


def _result(name: str, reader: Reader, costs: list[Cost], num_records: int) -> dict[str, Any]:
    rate = Spread.of([num_records / cost.cpu_seconds for cost in costs])
    return {
        "name": name,
        "read_bytes_per_record": round(reader.read_bytes, 1),
        "cpu_seconds": [round(cost.cpu_seconds, 4) for cost in costs],
        "records_per_second_per_core": vars(rate),
        "cpu_microseconds_per_record": 1e6 / rate.median,
    }


def _ratios(costs: dict[str, list[Cost]]) -> dict[str, Any]:
    """Return how many times as many records as the others ours reads, by the CPU times of each round."""
    return {
        name: {
            other: vars(
                Spread.of([b.cpu_seconds / a.cpu_seconds for a, b in zip(costs[name], costs[other], strict=True)])
            )
            for other in (WEBDATASET, STREAMING)
        }
        for name in (OURS, UNVERIFIED)
    }


def _show(report: dict[str, Any]) -> None:
    settings, ratios = report["settings"], report["ratios"]
    rows = []
    for result in report["readers"]:
        name, mine = result["name"], ratios.get(result["name"], {})
        rate, cost = result["records_per_second_per_core"]["median"], result["cpu_microseconds_per_record"]
        row = [name, f"{rate:,.0f}", f"{cost:.1f}", f"{result['read_bytes_per_record']:,.0f}"]
        rows.append(row + [str(Spread(**mine[other])) if mine else "" for other in (WEBDATASET, STREAMING)])
    show(report)
    show_table(
        f"{settings['records']:,} records in {settings['num_shards']} shards, mirrors stored: {settings['mirrors']}, a "
        f"mirror {settings['mirror_bytes']:,} bytes, batch {BATCH_SIZE}, page cache warm; CPU time, one thread, "
        f"medians of {settings['rounds']} rounds",
        ["reader", "records/s/core", "us/record", "bytes read", f"x {WEBDATASET}", f"x {STREAMING}"],
        rows,
    )
