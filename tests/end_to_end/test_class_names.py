"""Two classes of one name from images to samples, by every reader; and a walk that finds readers that nobody tried."""

import ast
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_scale.cli import main
from dit_scale.config import Config, load_config
from dit_scale.data.dataset import LatentDataset
from dit_scale.planning.choices import outline
from dit_scale.training.data import describe, open_dataset
from preprocessing.inspect import _rows
from tests.end_to_end.conftest import encode_settings
from tests.end_to_end.runs import TINY
from tests.launch import ROOT, run
from tests.preprocessing.images import picture, write_tar

NAMES = ("crane", "tench, Tinca tinca", "crane", "0")
"""Labels 0 and 2 are called alike, one name has a comma, and one is another label's number."""

TRIED = {
    "dit_scale/classes.py": "tests/test_classes.py",
    "dit_scale/cli/data.py": "tests/preprocessing/test_index.py",
    "dit_scale/cli/interchange.py": "tests/interop/test_exchange.py",
    "dit_scale/cli/samples.py": "tests/interop/test_exchange.py",
    "dit_scale/conditioning/interface.py": "here",
    "dit_scale/conditioning/none.py": "one name in place of all",
    "dit_scale/config/encoding.py": "tests/preprocessing/test_source_labels.py",
    "dit_scale/config/training.py": "tests/data/test_mixture.py",
    "dit_scale/data/class_files.py": "tests/data/test_class_files.py",
    "dit_scale/data/dataset.py": "tests/data/test_mixture.py",
    "dit_scale/data/manifest.py": "here",
    "dit_scale/data/mixture.py": "tests/data/test_mixture.py",
    "dit_scale/documents.py": "here",
    "dit_scale/interop/pipeline_folder.py": "tests/interop/test_exchange.py",
    "dit_scale/sampling/job.py": "here",
    "dit_scale/sampling/other.py": "compares them in their order",
    "dit_scale/sampling/sampler.py": "here",
    "dit_scale/sampling/sheet.py": "here",
    "dit_scale/bench/shards.py": "only numbers",
    "dit_scale/interop/exporting.py": "tests/interop/test_exchange.py",
    "dit_scale/interop/importing.py": "tests/interop/test_exchange.py",
    "preprocessing/index.py": "tests/preprocessing/test_index.py",
    "preprocessing/inspect.py": "here",
    "dit_scale/training/data.py": "here",
    "dit_scale/training/ema_images.py": "here",
    "dit_scale/training/evaluation.py": "only their count",
    "dit_scale/planning/choices.py": "here",
    "dit_scale/training/preview.py": "here",
    "dit_scale/training/build.py": "here",
    "preprocessing/finishing.py": "here",
    "preprocessing/planning.py": "here",
    "preprocessing/sources/class_tars.py": "tests/preprocessing/test_source_labels.py",
    "preprocessing/sources/classes.py": "tests/preprocessing/test_source_labels.py",
    "preprocessing/sources/folders.py": "tests/preprocessing/test_source_labels.py",
    "preprocessing/sources/listing.py": "here",
    "preprocessing/sources/summary.py": "tests/preprocessing/test_source_meant.py",
    "preprocessing/sources/lists.py": "tests/preprocessing/test_source_labels.py",
    "preprocessing/sources/table.py": "here",
    "preprocessing/sources/tars.py": "here",
}
"""Where each module that reads class names is tried with two of one name."""

MAY_NUMBER_NAMES = {
    "preprocessing/sources/class_tars.py": "after order_classes, which has refused equal names",
    "preprocessing/sources/classes.py": "after order_classes",
    "preprocessing/sources/folders.py": "after order_classes",
}
"""Modules with a mapping from name to label, in which the last of two equal names would win."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen records of four classes, of which two have one name."""
    folder = tmp_path_factory.mktemp("doubled")
    (folder / "images").mkdir()
    write_tar(folder / "images" / "a.tar", [(f"{i:02d}", picture(i), str(i % 4)) for i in range(16)])
    (folder / "names").write_text("\n".join(NAMES))
    settings = encode_settings(folder / "images", folder / "shards")
    main(["encode", "quickstart-encode", *settings, f"source.class_names={folder / 'names'}"])
    return folder / "shards"


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two steps with a preview, and what it said."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    settings = [*TINY, f"run_dir={run_dir}", f"data.path={shards}", "train.steps=2", "train.ema_decay=0.9999"]
    result = run(["train", "quickstart", *settings, "preview.every_steps=1", "preview.classes=[3,2]"])
    return run_dir, result.stdout + result.stderr


def test_shards_keep_labels_and_names(shards: Path, tmp_path: Path) -> None:
    main(["convert", str(shards), "--to", "mds", "--out", str(tmp_path / "mds")])
    for folder in (shards, tmp_path / "mds"):
        dataset = LatentDataset.open(folder)
        assert dataset.class_names == NAMES
        assert dataset.read(np.arange(16), np.zeros(16, bool))[1].tolist() == [i % 4 for i in range(16)]
    rows = _rows(LatentDataset.open(shards), num_classes=4, images_per_class=1)
    assert [name for name, _ in rows] == ["crane (0)", NAMES[1], "crane (2)", NAMES[3]]


def test_a_run_has_a_label_for_each_class(trained: tuple[Path, str], shards: Path) -> None:
    run_dir, _ = trained
    config = load_config(Config, "quickstart", [*TINY, f"data.path={shards}", "run_dir=unused"])
    dataset = open_dataset(config.data)
    assert describe(dataset)["class_names"] == list(NAMES)
    assert outline(config).num_classes == 4
    assert [path.name for path in sorted((run_dir / "samples").iterdir())] == ["step-00000001.png", "step-00000002.png"]
    main(["export", str(run_dir), "--to", "pt", "--out", str(run_dir.parent / "weights.pt")])
    weights = torch.load(run_dir.parent / "weights.pt", weights_only=True)
    assert len(weights["y_embedder.embedding_table.weight"]) == 4 + 1


def test_samples_of_every_label(trained: tuple[Path, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draw = ["sample", str(trained[0]), "--num-sampling-steps", "1", "--num-samples", "4"]
    main([*draw, "--out", str(tmp_path / "all")])
    with (tmp_path / "all" / "labels.csv").open() as file:
        assert [(row["label"], row["class"]) for row in csv.DictReader(file)] == [*zip("0123", NAMES, strict=True)]
    main([*draw, "--classes", "2,0", "--grid-over", "cfg-scale=1", "--out", str(tmp_path / "sheet")])
    assert json.loads((tmp_path / "sheet" / "sheet.json").read_text())["labels"] == ["crane (2)", "crane (0)"] * 2
    with pytest.raises(SystemExit):
        main([*draw, "--classes", "crane", "--out", str(tmp_path / "none")])
    assert "'crane' is the name of labels 0 and 2; give the number" in capfd.readouterr().err


def test_a_young_average_is_told(
    trained: tuple[Path, str], shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, said = trained
    young = "of decay 0.9999 it is 100% what the run began with, and more than 1% until update 46,050"
    assert said.count(f"previews and evaluations show the EMA: after 1 updates {young}") == 1
    draw = ["sample", str(run_dir), "--num-sampling-steps", "1", "--num-samples", "1", "--out", str(tmp_path / "out")]
    for weights, is_young in (("ema", True), ("ema-0.5", True), ("master", False), ("ema-power-0.1", False)):
        caplog.clear()
        main([*draw, "--overwrite", "--weights", weights])
        main(["export", str(run_dir), "--to", "pt", "--out", str(tmp_path / f"{weights}.pt"), "--weights", weights])
        told = [line for line in caplog.messages if "what the run began with" in line]
        assert len(told) == (2 if is_young else 0), weights
        assert all(f"average '{weights}' of step-00000002 is young" in line for line in told)
        if weights == "ema":
            assert told[0].endswith(f"after 2 updates {young}; --weights master draws with the trained weights")
    settings = [*TINY, f"run_dir={tmp_path / 'next'}", f"data.path={shards}", "train.steps=1", f"init_from={run_dir}"]
    said = run(["train", "quickstart", *settings]).stderr
    assert said.count(f"after 2 updates {young}; dit-scale export --weights master writes") == 1


def test_every_module_that_reads_class_names_is_tried_with_two_of_one_name() -> None:
    readers = {path for path, text in _sources() if "class_names" in text or "ClassNames" in text}
    assert readers == TRIED.keys(), "try a new reader with two classes of one name, and say above where"
    for place in TRIED.values():
        assert "/" not in place or "crane" in (ROOT / place).read_text(), place


def test_no_module_maps_names_to_labels_by_itself() -> None:
    found = {path for path, text in _sources() if _numbers_names(text)}
    assert found == MAY_NUMBER_NAMES.keys(), "a mapping from name to label forgets equal names; use ClassNames"
    assert _numbers_names("known = {name: label for label, name in enumerate(self.class_names)}")
    assert _numbers_names("labels = dict(zip(names, range(len(names))))")
    assert not _numbers_names("names = {label: name for label, name in enumerate(names)}")


def _sources() -> list[tuple[str, str]]:
    paths = (path for top in ("dit_scale", "preprocessing") for path in (ROOT / top).rglob("*.py"))
    return [(str(path.relative_to(ROOT)), path.read_text()) for path in sorted(paths)]


def _numbers_names(text: str) -> bool:
    """Whether a module makes a mapping of names to their places, as {x: i for i, x in enumerate(class_names)} does."""
    return any(_NUMBERED.search(ast.unparse(node)) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.expr))


_NUMBERED = re.compile(
    r"{(\w+): (\w+) for \(?\2, \1\)? in enumerate\([\w.]*names\)}|dict\(zip\([\w.]*names, range|\w*names\.index\("
)
