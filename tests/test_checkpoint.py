"""Checkpoints: complete or absent, readable in any part, and digests that do not depend on who held what."""

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dit_scale.checkpoint import (
    Checkpoint,
    Description,
    Outcome,
    Position,
    Retention,
    Saver,
    State,
    content_digests,
    find_last_good,
    prune,
    resolve,
    saving,
    weights_of,
)
from dit_scale.checkpoint.averages import youth, youth_of
from dit_scale.distributed.fragments import Fragment
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from tests.disks import small_disk

SHAPES = {"a": torch.Size([3, 4]), "b": torch.Size([5])}
VALUES = {"a": torch.arange(12.0), "b": torch.tensor([0.0, -0.0, 1e-30, 2.0, 3.0])}


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def cut(*edges: tuple[str, int, int]) -> State:
    """Return a state of fragments [first, last) of named parameters, of one kind."""
    fragments = [Fragment(name, first, last - first, 0, 0) for name, first, last in edges]
    return State(SHAPES, fragments, {"ema": [VALUES[name][first:last] for name, first, last in edges]}, adam_step=3)


STATE = cut(("a", 0, 7), ("a", 7, 12), ("b", 0, 5))


def description(step: int, **metrics: float) -> Description:
    return Description(Position(step, step * 8), {}, {}, metrics=metrics)


def write(folder: Path, step: int, retention: Retention | None = None, **metrics: float) -> Path:
    saver = Saver(folder, World(), retention or Retention())
    saver.save(description(step, **metrics), STATE)
    outcome = saver.wait()
    assert outcome is not None
    assert (outcome.step, outcome.trouble) == (step, None)
    return folder / f"step-{step:08d}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_any_part_reads_back(tmp_path: Path) -> None:
    found = Checkpoint(write(tmp_path, 3))
    assert found.description.position == Position(3, 24)
    assert found.adam_step == 3
    assert torch.equal(found.read("ema", "a", 5, 4), VALUES["a"][5:9])  # across two fragments
    assert torch.equal(found.whole("ema")["a"], VALUES["a"].view(3, 4))
    assert found.damage() is None


def test_a_kind_that_only_some_parameters_have(tmp_path: Path) -> None:
    """As Muon's momentum, which only matrices have."""
    kinds = {**STATE.kinds, "momentum_buffer": [VALUES["a"][:7] * 2.0, VALUES["a"][7:] * 2.0]}
    state = replace(STATE, kinds=kinds, names={"momentum_buffer": {"a"}})
    assert state.num_bytes() == 4 * (17 + 12)
    saver = Saver(tmp_path, World(), Retention())
    saver.save(description(1), state)
    saver.wait()
    found = Checkpoint(tmp_path / "step-00000001")
    assert (found.weight_kinds, found.optimizer_kinds) == (["ema"], ["momentum_buffer"])
    assert {kind: list(digests) for kind, digests in found.content_digests.items()} == {
        "ema": ["a", "b"],
        "momentum_buffer": ["a"],
    }
    assert found.whole("momentum_buffer").keys() == {"a"}
    assert torch.equal(found.read("momentum_buffer", "a", 5, 4), VALUES["a"][5:9] * 2.0)
    with pytest.raises(InputError, match="holds no weights 'momentum_buffer'; choose one of ema"):
        weights_of(found, "momentum_buffer")


def test_a_young_average_says_how_young(tmp_path: Path) -> None:
    train = {"ema_decay": 0.9999, "extra_ema_decays": [0.5]}
    kinds = dict.fromkeys(("master", "ema", "ema-0.5", "ema-power-0.1"), STATE.kinds["ema"])
    saver = Saver(tmp_path / "trained", World(), Retention())
    saver.save(replace(description(60), config={"train": train}), replace(STATE, kinds=kinds, adam_step=60))
    saver.wait()
    trained, imported = Checkpoint(tmp_path / "trained" / "step-00000060"), Checkpoint(write(tmp_path, 0))
    said = "after 60 updates of decay 0.9999 it is 99% what the run began with, and more than 1% until update 46,050"
    assert youth_of(trained, "ema") == f"average 'ema' of step-00000060 is young: {said}"
    assert [youth_of(trained, kind) for kind in ("master", "ema-0.5", "ema-power-0.1", "post-hoc-0.1")] == [None] * 4
    assert youth_of(imported, "ema") is None  # weights of others, which no run averaged


def test_an_average_is_young_while_more_than_a_hundredth_is_its_start() -> None:
    assert youth(0.9999, 46_050) is None
    assert "is 1% what" in (youth(0.9999, 46_049) or "")
    assert youth(0.5, 7) is None  # 0.8%
    assert "is 2% what the run began with, and more than 1% until update 7" in (youth(0.5, 6) or "")
    assert youth(0.0, 1) is None
    assert "is 100% what" in (youth(0.0, 0) or "")


def test_digests_do_not_depend_on_the_cut() -> None:
    whole = content_digests(cut(("a", 0, 12), ("b", 0, 5)))
    assert content_digests(cut(("b", 2, 5), ("a", 7, 12), ("b", 0, 2), ("a", 0, 7))) == whole


@pytest.mark.parametrize("change", ["one bit", "two swapped", "sign of zero"])
def test_digests_see_every_change(change: str) -> None:
    state = cut(("a", 0, 12), ("b", 0, 5))
    a, b = (tensor.clone() for tensor in state.kinds["ema"])
    if change == "one bit":
        a.view(torch.int32)[11] ^= 1
    elif change == "two swapped":
        a[[2, 3]] = a[[3, 2]]
    else:
        b[0] = -0.0
    assert content_digests(replace(state, kinds={"ema": [a, b]})) != content_digests(state)


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


def test_any_safetensors_reader_opens_a_ranks_file(tmp_path: Path) -> None:
    tensors = load_file(write(tmp_path, 1) / "rank-00000.safetensors")
    assert torch.equal(tensors["ema/a/7"], VALUES["a"][7:])
    assert set(tensors) == {"ema/a/0", "ema/a/7", "ema/b/0"}


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path) -> None:
    """What is changed after ``save`` has returned is not what is saved."""
    state = cut(("a", 0, 12), ("b", 0, 5))
    state = replace(state, kinds={"ema": [tensor.clone() for tensor in state.kinds["ema"]]})
    saver = Saver(tmp_path, World(), Retention())
    for step in (1, 2):  # the second into the memory of the first
        saver.save(description(step), state)
        state.kinds["ema"][0].add_(100.0)
    saver.wait()
    assert torch.equal(Checkpoint(tmp_path / "step-00000001").read("ema", "a", 0, 12), VALUES["a"])
    assert torch.equal(Checkpoint(tmp_path / "step-00000002").read("ema", "a", 0, 12), VALUES["a"] + 100.0)


def test_what_is_saved_is_saved_whatever_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a reader on a networked folder keeps files of an old checkpoint open."""

    def fails(*_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "prune", fails)
        write(tmp_path, 1)
    assert "step-00000001 is saved" in caplog.text
    assert (tmp_path / "latest").read_text().strip() == "step-00000001"


@pytest.mark.parametrize("looks_first", [True, False])
def test_a_full_disk_leaves_the_last_one_and_is_tried_again(
    tmp_path: Path, looks_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not looks_first:  # the look says that there is room, as where a quota ends it
        monkeypatch.setattr(saving, "_SPARE_BYTES", -(1 << 30))
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        checkpoints = disk.folder / "checkpoints"
        write(checkpoints, 1)
        ballast = disk.fill()
        told: list[Outcome] = []
        saver = Saver(checkpoints, World(), Retention())
        saver.save(description(2), STATE, told.append)
        saver.wait()
        assert names(checkpoints) == ["latest", "step-00000001"]
        assert (checkpoints / "latest").read_text().strip() == "step-00000001"
        ballast.unlink()
        saver.save(description(2), STATE, told.append)
        saver.wait()
        assert names(checkpoints) == ["latest", "step-00000001", "step-00000002"]
    assert [outcome.trouble is None for outcome in told] == [False, True]
    assert (told[0].trouble or "").startswith("rank 0: ")


def test_pruning_keeps_the_newest_the_regular_and_the_best_and_sweeps_leftovers(tmp_path: Path) -> None:
    losses = {1: 0.9, 2: 0.2, 3: 0.4, 4: 0.5, 5: 0.7, 6: 0.6}
    everything = Retention(newest=9)
    for step, loss in losses.items():
        write(tmp_path, step, everything, validation_loss=loss)
    (tmp_path / ".step-00000009.tmp").mkdir()
    copy = "step-00000001-of-mine"
    (tmp_path / copy).mkdir()
    prune(tmp_path, Retention(newest=2, every_steps=4, best=1))
    assert names(tmp_path) == ["latest", copy, *(f"step-{step:08d}" for step in (2, 4, 5, 6))]
    prune(tmp_path, Retention(newest=1, best=1, higher_is_better=True))
    assert names(tmp_path) == ["latest", copy, *(f"step-{step:08d}" for step in (5, 6))]
    prune(tmp_path, Retention(newest=1))
    assert names(tmp_path) == ["latest", copy, "step-00000006"]


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
    for _ in range(2):  # nor the second time, nor does it move what may be somebody's last copy
        with pytest.raises(InputError, match=r"no checkpoint in .* is whole, and the run has saved before"):
            find_last_good(tmp_path, World())
    assert names(tmp_path) == ["latest", "step-00000001"]
    (tmp_path / "step-00000001").rename(tmp_path / "damaged-step-00000001")
    with pytest.raises(InputError, match="has saved before"):
        find_last_good(tmp_path, World())
    (tmp_path / "new" / ".step-00000001.tmp").mkdir(parents=True)  # killed in its first save
    assert find_last_good(tmp_path / "new", World()) is None


def test_another_format_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(InputError, match=r"format 99, newer than"):
        Checkpoint(folder)
