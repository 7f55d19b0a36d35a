"""Checkpoints: complete or absent, readable in any part, and digests that do not depend on who held what."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dit_scale import checkpoint as checkpoints
from dit_scale.checkpoint import (
    Checkpoint,
    Description,
    Position,
    content_digests,
    find_last_good,
    prune,
    resolve,
    save,
)
from dit_scale.distributed.fragments import Fragment
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError

SHAPES = {"a": torch.Size([3, 4]), "b": torch.Size([5])}
VALUES = {"a": torch.arange(12.0), "b": torch.tensor([0.0, -0.0, 1e-30, 2.0, 3.0])}


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def cut(*edges: tuple[str, int, int]) -> tuple[list[Fragment], dict[str, list[torch.Tensor]]]:
    """Return fragments [first, last) of named parameters, and their values for one kind."""
    fragments = [Fragment(name, first, last - first, 0, 0) for name, first, last in edges]
    return fragments, {"ema": [VALUES[name][first:last] for name, first, last in edges]}


def write(folder: Path, step: int) -> Path:
    owned, kinds = cut(("a", 0, 7), ("a", 7, 12), ("b", 0, 5))
    return save(folder, Description(Position(step, step * 8), {}, {}), SHAPES, owned, kinds, step, World())


def test_any_part_reads_back(tmp_path: Path) -> None:
    found = Checkpoint(write(tmp_path, 3))
    assert found.description.position == Position(3, 24)
    assert found.adam_step == 3
    assert torch.equal(found.read("ema", "a", 5, 4), VALUES["a"][5:9])  # across two fragments
    assert torch.equal(found.whole("ema")["a"], VALUES["a"].view(3, 4))
    assert found.damage() is None


def test_digests_do_not_depend_on_the_cut() -> None:
    whole = content_digests(*cut(("a", 0, 12), ("b", 0, 5)), ["a", "b"])
    assert content_digests(*cut(("b", 2, 5), ("a", 7, 12), ("b", 0, 2), ("a", 0, 7)), ["a", "b"]) == whole


@pytest.mark.parametrize("change", ["one bit", "two swapped", "sign of zero"])
def test_digests_see_every_change(change: str) -> None:
    fragments, kinds = cut(("a", 0, 12), ("b", 0, 5))
    before = content_digests(fragments, kinds, ["a", "b"])
    changed = {"ema": [tensor.clone() for tensor in kinds["ema"]]}
    if change == "one bit":
        changed["ema"][0].view(torch.int32)[11] ^= 1
    elif change == "two swapped":
        changed["ema"][0][[2, 3]] = changed["ema"][0][[3, 2]]
    else:
        changed["ema"][1][0] = -0.0
    assert content_digests(fragments, changed, ["a", "b"]) != before


def test_the_newest_that_verifies_is_taken(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / ".step-00000004.tmp").mkdir()  # killed while writing
    file = tmp_path / "step-00000003" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "step-00000002" / "manifest.json").write_text('{"format_version"')
    found = find_last_good(tmp_path, World())
    assert found is not None
    assert found.folder.name == "step-00000001"
    assert sorted(path.name for path in tmp_path.glob("damaged-*")) == [
        "damaged-step-00000002",
        "damaged-step-00000003",
    ]


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 2)
    assert (tmp_path / "latest").read_text().strip() == "step-00000001"
    found = find_last_good(tmp_path, World())
    assert found is not None
    assert found.folder.name == "step-00000001"


def test_pruning_keeps_the_newest_and_sweeps_leftovers(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / ".step-00000009.tmp").mkdir()
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]


def test_resolve_takes_a_run_its_checkpoints_or_one_of_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoints", 1)
    assert resolve(tmp_path) == resolve(tmp_path / "checkpoints") == resolve(folder) == folder
    with pytest.raises(InputError, match="holds no checkpoint"):
        resolve(tmp_path / "elsewhere")


def test_a_changed_digit_of_the_manifest_is_damage(tmp_path: Path) -> None:
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    text = (folder / "manifest.json").read_text()
    assert '"images_seen": 16' in text
    (folder / "manifest.json").write_text(text.replace('"images_seen": 16', '"images_seen": 17'))
    found = find_last_good(tmp_path, World())
    assert found is not None
    assert found.folder.name == "step-00000001"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    (write(tmp_path, 1) / "rank-00000.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        find_last_good(tmp_path, World())
    assert find_last_good(tmp_path / "new", World()) is None


def test_another_format_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(InputError, match=r"format 99, newer than"):
        Checkpoint(folder)
