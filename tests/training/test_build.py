"""What a run opens is closed where it fails, and what it would draw is checked before its first step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dit_scale.autoencoder import PCACodec, save_autoencoder
from dit_scale.conditioning import CONDITIONS, Condition, RecordArray, build_condition
from dit_scale.config import Config, DataConfig, load_config
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.folder import ShardFolder
from dit_scale.data.manifest import Manifest, read_manifest
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, process_group
from dit_scale.errors import InputError
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.supervision.phases import Phases
from dit_scale.training import build as building
from dit_scale.training.data import open_dataset
from dit_scale.training.loss import LossFunction
from dit_scale.training.periodic import PeriodicTasks
from tests.data.shard_folder import LATENTS, write_folder

TEXT = RecordArray("text", "float16", (4, 8))


class Text(Condition):
    stored = TEXT
    null = 0.0

    def embedding(self, hidden_size: int) -> nn.Module:
        return nn.Linear(8, hidden_size)


def test_a_run_that_fails_half_way_closes_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "shards", [5])
    opened: list[LatentDataset] = []

    def remembered(*arguments: Any, **options: Any) -> LatentDataset:
        opened.append(open_dataset(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(building, "open_dataset", remembered)
    given = [f"run_dir={tmp_path}/run", f"data.path={tmp_path}/shards", "model.name=DiT-S/4", "init_from=nowhere.pt"]
    config, world = load_config(Config, None, given), World.from_environment()
    run = building.build(config, world, "cpu", Phases())
    with process_group(world, "cpu"), pytest.raises(InputError, match=r"nowhere\.pt"), run:
        raise AssertionError("nothing is there to begin with")
    with pytest.raises(ValueError, match="is closed"):
        opened[0].read(np.arange(1), np.zeros(1, bool))


@pytest.mark.parametrize("wrong", ["the scale", "a folder", "the condition"])
def test_data_that_are_refused_are_closed(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "a", [5], arrays=(TEXT,))
    opened: list[ShardFolder] = []
    folder_of = ShardFolder.open

    def remembered(*arguments: Any) -> ShardFolder:
        opened.append(folder_of(*arguments))
        return opened[-1]

    monkeypatch.setattr(ShardFolder, "open", remembered)
    monkeypatch.setitem(CONDITIONS, "text", Text)
    path: Any = str(tmp_path / "a")
    if wrong == "the scale":
        monkeypatch.setattr(Manifest, "normalised_rms", 9.0)
    elif wrong == "the condition":
        write_folder(tmp_path / "b", [5])
        path = {path: 1.0, str(tmp_path / "b"): 1.0}
    else:
        path = {path: 1.0, str(tmp_path / "missing"): 1.0}
    with pytest.raises(InputError):
        open_dataset(DataConfig(path=path), "text" if wrong == "the condition" else "label")
    assert len(opened) == (2 if wrong == "the condition" else 1)
    for folder in opened:
        with pytest.raises(ValueError, match="is closed"):
            folder.read(np.arange(1), np.zeros(1, np.int64), np.empty((1, folder.row_bytes()), np.uint8), verify=False)


def test_a_condition_without_names_is_refused_where_a_run_would_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONDITIONS, "text", Text)
    codec = PCACodec.fit([torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)], 4, 4)
    shards = tmp_path / "shards"
    write_folder(shards, [5], arrays=(TEXT,))
    save_autoencoder(codec, shards)
    replace(read_manifest(shards), autoencoder=codec.identity).write(shards)
    dataset, world = open_dataset(DataConfig(path=str(shards)), "text"), World.from_environment()
    loss = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.1, build_condition("text", 3, has_null=True))
    given = [f"run_dir={tmp_path}/run", f"data.path={shards}", "model.name=DiT-S/4", "model.condition=text"]

    def periodic(*more: str) -> PeriodicTasks:
        config = load_config(Config, None, [*given, *more])
        return PeriodicTasks(config, dataset, loss, world, "cpu", Phases(), Conveniences(tmp_path, world))

    with process_group(world, "cpu"):
        with pytest.raises(InputError, match=r"array 'text' of records.*train with preview\.every_steps=0"):
            periodic("preview.every_steps=2")
        assert not periodic("preview.every_steps=0").is_due(2)
