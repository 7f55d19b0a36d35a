"""Crops: read beside the latents that they became, mirrored with them, by those who ask for them, and checked alike."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_scale.conditioning import RecordArray
from dit_scale.config import Config, DataConfig, TrainSection
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.loader import Batch, Loader, Reading
from dit_scale.data.manifest import read_manifest
from dit_scale.data.mds import to_mds, to_tar
from dit_scale.data.shards import Record, write_shard
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.training.data import open_dataset, open_loader
from tests.data.shard_folder import CROPS, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "tar", [5, 1, 4], arrays=(RecordArray("text", "float16", (3,)),), with_crops=True)
    return tmp_path / "tar"


def _flip_a_bit(path: Path, record: int) -> None:
    content = bytearray(path.read_bytes())
    content[int(CROPS.offsets(np.array([record]))[0]) + 9] ^= 1
    path.write_bytes(content)


def _check(batch: Batch, written: dict[str, Record]) -> list[bool]:
    """Assert that crops are those of the moments' records, and mirrored with them; return which are mirrored."""
    assert batch.crops is not None and batch.crops.dtype == torch.uint8
    mirrored = []
    for key, moments, crop in zip(batch.keys, batch.moments.numpy(), batch.crops.numpy(), strict=True):
        record = written[key]
        assert record.crop is not None
        mirrored.append(np.array_equal(moments, record.moments[1]))
        assert np.array_equal(moments, record.moments[int(mirrored[-1])])
        assert np.array_equal(crop, record.crop[:, :, ::-1] if mirrored[-1] else record.crop)
    return mirrored


@pytest.mark.parametrize("kind", ["tar", "mds"])
@pytest.mark.parametrize("mirror", [True, False])
def test_a_batch_has_the_crops_of_its_latents_mirrored_with_them(tmp_path: Path, kind: str, mirror: bool) -> None:
    records = write_folder(tmp_path / "tar", [20, 1, 11], with_crops=True)
    if kind == "mds":
        to_mds(tmp_path / "tar", tmp_path / "mds")
    written = {f"{record.source_index:010d}": record for record in records}
    data = DataConfig(path=str(tmp_path / kind), mirror=mirror)
    config = Config(run_dir="r", data=data, train=TrainSection(global_batch_size=32, micro_batch_size_per_gpu=16))
    with open_loader(open_dataset(data, with_crops=True), config, World(), start=7) as loader:
        mirrored = [flag for _ in range(3) for flag in _check(next(loader), written)]
    assert any(mirrored) == mirror and not all(mirrored)


def test_ranks_and_resumes_see_the_same_crops(folder: Path) -> None:
    def batches(ranks: int, start: int, steps: int) -> list[torch.Tensor]:
        loaders = [
            Loader(
                LatentDataset.open(folder, with_crops=True),
                seed=1,
                global_batch_size=8,
                rank=rank,
                world_size=ranks,
                start=start,
            )
            for rank in range(ranks)
        ]
        parts = [[next(loader).crops for loader in loaders] for _ in range(steps)]
        return [torch.cat([part for part in step if part is not None]) for step in parts]

    whole = batches(1, 0, 5)
    assert all(map(torch.equal, batches(4, 16, 3), whole[2:]))


def test_who_does_not_ask_reads_none(folder: Path) -> None:
    plain, asking = LatentDataset.open(folder), LatentDataset.open(folder, with_crops=True)
    for path in folder.glob("*.crops"):
        path.unlink()
    with Loader(LatentDataset.open(folder), seed=0, global_batch_size=10) as loader:
        assert next(loader).crops is None
    assert plain.fingerprint() != asking.fingerprint()
    with pytest.raises(InputError, match=r"file of crops '.*shard-000000.crops' is missing; run dit-scale verify"):
        LatentDataset.open(folder, with_crops=True)


def test_a_folder_without_crops_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "none", [3])
    with pytest.raises(InputError, match=r"none' holds no crops.*; encode again with keep_crops=true") as refused:
        open_dataset(DataConfig(path=str(tmp_path / "none")), with_crops=True)
    assert len(str(refused.value).splitlines()) == 1
    write_folder(tmp_path / "some", [3], with_crops=True)
    both = {str(tmp_path / "some"): 1.0, str(tmp_path / "none"): 1.0}
    with pytest.raises(InputError, match=r"none' holds no crops"):
        LatentDataset.open(both, with_crops=True)
    assert "crop" not in (tmp_path / "none" / "manifest.json").read_text().replace("adm-centre-crop", "")


def test_damage_stops_or_sets_the_record_aside(folder: Path) -> None:
    _flip_a_bit(folder / "shard-000002.crops", record=1)
    _flip_a_bit(folder / "shard-000000.crops", record=3)
    with (
        Loader(LatentDataset.open(folder, with_crops=True), seed=0, global_batch_size=10) as loader,
        pytest.raises(InputError, match=r"of shard '.*\.crops' does not have the digest .* data.on_damage=set_aside"),
    ):
        next(loader)
    dataset = LatentDataset.open(folder, with_crops=True)
    with Loader(dataset, seed=0, global_batch_size=10, reading=Reading(on_damage="set_aside")) as loader:
        batch = next(loader)
    assert batch.crops is not None
    assert {batch.keys[place] for place in batch.damaged} == {"0000000003", "0000000007"}
    for place in range(10):
        is_whole = place not in batch.damaged
        assert bool(batch.moments[place].any()) == bool(batch.crops[place].any()) == is_whole
    with Loader(LatentDataset.open(folder), seed=0, global_batch_size=10) as loader:
        assert not next(loader).damaged


def test_mixtures_and_held_out_records_have_crops(tmp_path: Path) -> None:
    written = {}
    for name, count in (("one", 12), ("two", 20)):
        records = write_folder(tmp_path / name, [count], with_crops=True)
        written |= {f"{name}:{record.source_index:010d}": record for record in records}
    paths = {str(tmp_path / name): 1.0 for name in ("one", "two")}
    dataset = LatentDataset.open(paths, held_out_fraction=0.4, with_crops=True)
    with Loader(dataset, seed=0, global_batch_size=16) as loader:
        batch = next(loader)
    _check(batch, written)
    held_out = dataset.held_out()
    assert 0 < len(held_out) < 32
    crops, damaged = dataset.read_crops(held_out, np.zeros(len(held_out), bool))
    assert not damaged
    for key, crop in zip(dataset.keys(held_out), crops.numpy(), strict=True):
        assert np.array_equal(crop, written[key].crop)


def test_there_and_back_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    made = to_mds(folder, tmp_path / "mds")
    assert made == read_manifest(tmp_path / "mds")
    assert made.crops == CROPS and made.num_bytes == sum(path.stat().st_size for path in _data_files(tmp_path / "mds"))
    assert to_mds(folder, tmp_path / "mds") == made  # which is there
    to_tar(tmp_path / "mds", tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    (tmp_path / "mds" / made.shards[1].crops).unlink()
    with pytest.raises(InputError, match=r"shard '.*\.crops' is missing; delete '.*mds' and run this again"):
        to_mds(folder, tmp_path / "mds")
    _flip_a_bit(folder / "shard-000002.crops", record=1)
    with pytest.raises(InputError, match=r"record 0000000007 of shard '.*shard-000002.crops' does not have the digest"):
        to_mds(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _data_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".mds", ".crops")]


def test_anyone_reads_the_crops(folder: Path, tmp_path: Path) -> None:
    written = write_folder(tmp_path / "again", [5])
    with tarfile.open(folder / "shard-000000.crops") as archive:
        assert archive.getnames() == [f"000000000{number}.npy" for number in range(5)]
        for record, member in zip(written, archive.getmembers(), strict=True):
            file = archive.extractfile(member)
            assert file is not None
            assert np.array_equal(np.load(io.BytesIO(file.read())), record.crop)


def test_a_record_without_its_crop_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (record,) = write_folder(tmp_path / "one", [1])
    layout = read_manifest(tmp_path / "one").layout
    target = tmp_path / "two"
    target.mkdir()
    for crop, named in ((None, "has no crop"), (np.zeros((32, 32, 3), np.uint8), r"uint8 \(32, 32, 3\)")):
        bad = Record(0, "a", 0, record.moments, crop=crop)
        with pytest.raises(ValueError, match=named):
            write_shard(target, "shard-000000", layout, [bad], CROPS)
        assert not list(target.iterdir())
