"""Several folders as one stream: exact shares, each folder's epochs whole, classes told apart by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dit_scale.data.dataset import LatentDataset
from dit_scale.data.loader import Loader
from dit_scale.data.manifest import read_manifest
from dit_scale.data.order import Order, shares_of
from dit_scale.errors import InputError
from tests.data.shard_folder import write_folder


def _folder(path: Path, counts: list[int], class_names: tuple[str, ...], **changes: object) -> str:
    write_folder(path, counts)
    replace(read_manifest(path), class_names=class_names, **changes).write(path)  # type: ignore[arg-type]
    return str(path)


@pytest.fixture
def both(tmp_path: Path) -> dict[str, float]:
    """31 records of three classes, and 11 of three of which one is the same."""
    return {
        _folder(tmp_path / "animals", [20, 11], ("ant", "bee", "cow")): 3.0,
        _folder(tmp_path / "birds", [11], ("crow", "bee", "dove")): 1.0,
    }


@pytest.mark.parametrize("weights", [(1.0,), (3.0, 1.0), (0.2, 0.5, 0.3), (1.0, 1e-3), (1 / 3, 2 / 3)])
def test_shares_are_what_the_weights_say(weights: tuple[float, ...]) -> None:
    shares = np.array(shares_of(weights))
    np.testing.assert_allclose(shares / shares.sum(), np.array(weights) / sum(weights), atol=1e-4)


def test_every_part_has_its_share_and_whole_epochs() -> None:
    order = Order(seed=5, num_records=(7, 101, 13), shares=shares_of((2.0, 5.0, 1.0)))
    assert order.shares == (2, 5, 1)
    parts, records = order.at(np.arange(8 * 500))
    for part, (share, count) in enumerate(zip(order.shares, order.num_records, strict=True)):
        assert (parts.reshape(-1, 8) == part).sum(axis=1).tolist() == [share] * 500
        mine = records[parts == part]
        epochs = mine[: len(mine) // count * count].reshape(-1, count)
        assert (np.sort(epochs, axis=1) == np.arange(count)).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)


def test_a_position_means_the_same_however_it_is_asked_for() -> None:
    order = Order(seed=1, num_records=(31, 11), shares=(3, 1))
    parts, records = order.at(np.arange(1000))
    for first in (0, 7, 512, 993):
        some = order.at(np.arange(first, first + 7))
        assert (some[0] == parts[first : first + 7]).all()
        assert (some[1] == records[first : first + 7]).all()


def test_equal_names_are_one_class_and_new_ones_follow(both: dict[str, float]) -> None:
    dataset = LatentDataset.open(both)
    assert dataset.class_names == ("ant", "bee", "cow", "crow", "dove")
    _, labels = dataset.read(np.array([0, 1, 2, 31, 32, 33]), np.zeros(6, bool))
    assert labels.tolist() == [0, 1, 2, 3, 1, 4]
    assert dataset.keys(np.array([2, 31])) == ["animals:0000000002", "birds:0000000000"]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_mixed_stream_is_the_same_on_any_number_of_ranks(both: dict[str, float], world_size: int) -> None:
    def keys(ranks: int) -> list[list[str]]:
        loaders = [
            Loader(LatentDataset.open(both), seed=2, global_batch_size=8, rank=rank, world_size=ranks)
            for rank in range(ranks)
        ]
        steps = [[key for loader in loaders for key in next(loader).keys] for _ in range(12)]
        for loader in loaders:
            loader.close()
        return steps

    whole = keys(1)
    assert keys(world_size) == whole
    assert sum(key.startswith("birds") for step in whole for key in step) == 24


def test_reading_across_folders_gives_each_record_its_own_moments(both: dict[str, float]) -> None:
    dataset = LatentDataset.open(both)
    mixed, _ = dataset.read(np.array([33, 4, 31, 30]), np.array([True, False, False, True]))
    animals, birds = (LatentDataset.open(path) for path in both)
    expected = [(birds, 2, True), (animals, 4, False), (birds, 0, False), (animals, 30, True)]
    for moments, (folder, index, mirrored) in zip(mixed, expected, strict=True):
        assert (moments == folder.read(np.array([index]), np.array([mirrored]))[0][0]).all()


def test_clashing_classes_are_refused_and_can_be_mapped(tmp_path: Path) -> None:
    one = _folder(tmp_path / "one", [5], ("Ant", "bee", "cow"))
    numbers = _folder(tmp_path / "numbers", [5], ("0", "1", "2"))
    alike = _folder(tmp_path / "alike", [5], ("ant", "bee", "cow"))
    with pytest.raises(InputError, match=r"class '0' of '.*numbers' is a number"):
        LatentDataset.open({one: 1.0, numbers: 1.0})
    with pytest.raises(InputError, match=r"classes 'Ant' and 'ant' are too much alike"):
        LatentDataset.open({one: 1.0, alike: 1.0})
    names = {numbers: {"0": "bee", "1": "dog", "2": "dog"}, alike: {"ant": "Ant"}}
    assert LatentDataset.open({one: 1.0, alike: 1.0}, class_names={alike: names[alike]}).class_names == (
        "Ant",
        "bee",
        "cow",
    )
    mapped = LatentDataset.open({one: 1.0, numbers: 1.0}, class_names={numbers: names[numbers]})
    assert mapped.class_names == ("Ant", "bee", "cow", "dog")
    assert mapped.read(np.arange(5, 8), np.zeros(3, bool))[1].tolist() == [1, 3, 3]
    with pytest.raises(InputError, match=r"renames 'ame' .* did you mean|which has no such class"):
        LatentDataset.open({one: 1.0}, class_names={one: {"ame": "x"}})
    with pytest.raises(InputError, match=r"which is not in data.path"):
        LatentDataset.open({one: 1.0}, class_names={"elsewhere": {"ant": "x"}})


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    one = _folder(tmp_path / "one", [5], ("a", "b", "c"))
    other = {"kind": "pca", "name": "pca", "revision": None, "sha256": "1" * 64}
    two = _folder(tmp_path / "two", [5], ("a", "b", "c"), autoencoder=other)
    with pytest.raises(InputError, match=r"has autoencoder 111111111111, .* has 000000000000"):
        LatentDataset.open({one: 1.0, two: 1.0})


def test_the_fingerprint_is_that_of_the_records(both: dict[str, float], tmp_path: Path) -> None:
    fingerprint = LatentDataset.open(both).fingerprint()
    first, second = both
    assert LatentDataset.open({first: 6.0, second: 2.0}).fingerprint() == fingerprint
    assert LatentDataset.open({first: 1.0, second: 1.0}).fingerprint() != fingerprint
    write_folder(tmp_path / "other", [31])  # the same records in one shard instead of two
    replace(read_manifest(tmp_path / "other"), class_names=("ant", "bee", "cow")).write(tmp_path / "other")
    assert LatentDataset.open(tmp_path / "other").manifest.fingerprint != LatentDataset.open(first).manifest.fingerprint


def test_equal_names_of_one_folder_stay_apart(tmp_path: Path) -> None:
    doubled = _folder(tmp_path / "doubled", [6], ("crane", "bee", "crane"))
    dataset = LatentDataset.open(doubled)
    assert dataset.class_names == ("crane", "bee", "crane")
    assert dataset.read(np.arange(3), np.zeros(3, bool))[1].tolist() == [0, 1, 2]


def test_equal_names_of_one_folder_are_told_apart_before_they_are_mixed(tmp_path: Path) -> None:
    doubled = _folder(tmp_path / "doubled", [6], ("crane", "bee", "crane"))
    other = _folder(tmp_path / "other", [6], ("bee", "crane", "ant"))
    both = {other: 1.0, doubled: 1.0}
    refused = rf"'{doubled}' has 2 classes named 'crane' \(labels 0 and 2\).*; give each a name by data.class_names="
    with pytest.raises(InputError, match=refused):
        LatentDataset.open(both)
    with pytest.raises(InputError, match=refused):  # one folder with new names goes by name, too
        LatentDataset.open(doubled, class_names={doubled: {"bee": "wasp"}})
    with pytest.raises(InputError, match=r"renames 'crane' of .* is the name of labels 0 and 2 there; give the label"):
        LatentDataset.open(both, class_names={doubled: {"crane": "bird"}})
    dataset = LatentDataset.open(both, class_names={doubled: {"2": "crane, machine"}})  # as the sentence advises
    assert dataset.class_names == ("bee", "crane", "ant", "crane, machine")
    assert dataset.read(np.arange(6, 9), np.zeros(3, bool))[1].tolist() == [1, 0, 3]
    merged = LatentDataset.open(both, class_names={doubled: {"0": "crane", "2": "crane"}})
    assert merged.read(np.arange(6, 9), np.zeros(3, bool))[1].tolist() == [1, 0, 1]


def test_a_mixture_of_many_classes_is_refused_in_a_sentence(tmp_path: Path) -> None:
    many = _folder(tmp_path / "many", [5], ("crane",) * 1000)
    other = _folder(tmp_path / "other", [5], tuple(f"class {label}" for label in range(1000)))
    for folders, renamed in (
        ({many: 1.0, other: 1.0}, {}),
        ({many: 1.0, other: 1.0}, {many: {"crane": "x"}}),
        ({other: 1.0}, {other: {"zebra": "x"}}),
    ):
        with pytest.raises(InputError) as caught:
            LatentDataset.open(folders, class_names=renamed)
        assert len(str(caught.value)) < 600
