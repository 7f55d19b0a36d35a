"""Every JSON file that is read back: one that is something else is refused, or done without, in plain words."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import pytest
import torch
from safetensors.torch import save_file

from dit_scale.autoencoder import FILE_NAME as AUTOENCODER
from dit_scale.autoencoder import load_autoencoder
from dit_scale.checkpoint.layout import write_manifest
from dit_scale.checkpoint.reading import open_whole
from dit_scale.config import Config, EncodeConfig, load_config
from dit_scale.data.manifest import read_manifest
from dit_scale.documents import Misfit, parsed
from dit_scale.errors import InputError
from dit_scale.evaluation import open_images, own_protocol
from dit_scale.evaluation.job import evaluate
from dit_scale.interop.pipeline_folder import read_pipeline
from dit_scale.jobs.requeue import Limits, decide
from dit_scale.jobs.status import look
from dit_scale.report.reading import read_record
from dit_scale.sampling.protocol import begin_or_go_on
from dit_scale.supervision.markers import HUNG, STOPPED, read_marker
from dit_scale.training.bad_steps import _steps_in
from dit_scale.training.metrics import cut_back
from dit_scale.training.run_folder import BAD_STEPS
from preprocessing.job import Job
from preprocessing.planning import join
from tests.data.shard_folder import write_folder
from tests.evaluation.small import pictures
from tests.evaluation.small import write_folder as write_images

WRONG = {"null": "null", "list": "[]", "number": "3", "empty": "{}", "truncated": '{"step": 1, "reas', "nothing": ""}
SAYS = {
    "null": "found null",
    "list": "found an empty list",
    "number": "found 3",
    "empty": "found an empty object",
    "truncated": "found text that is not, from column 13 on",
    "nothing": "found an empty file",
}
PYTHON = re.compile(
    r"None|\bTrue\b|\bFalse\b|object has no|indices|subscript|Error|Traceback|\b(dict|str|int|float|bool|tuple)\b|"
    r"iterable|argument|Expecting|\[Errno"
)


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


class Places(TypedDict):
    points: list[Point]
    name: NotRequired[str | None]
    kind: NotRequired[Literal["near", "far"]]
    on: NotRequired[bool]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "expected the key 'points', found an empty object"),
        ('{"a": 1, "b": 2, "c": 3, "d": 4}', "expected the key 'points', found only 'a', 'b', 'c', …"),
        ('{"points": {"x": 1}}', "expected 'points' to be a list, found an object with 'x'"),
        ('{"points": [{"x": 1}, {"y": 1}]}', "expected the key 'points.1.x', found only 'y'"),
        ('{"points": [{"x": 1, "z": 1}]}', "found the key 'points.0.z', which does not belong there"),
        ('{"points": [{"x": 1.5}]}', "expected 'points.0.x' to be a whole number, found 1.5"),
        ('{"points": [{"x": true}]}', "expected 'points.0.x' to be a whole number, found true"),
        ('{"points": [{"x": 1, "y": "1"}]}', "expected 'points.0.y' to be a number, found \"1\""),
        ('{"points": [], "name": [1, 2]}', "expected 'name' to be text, found a list of 2"),
        ('{"points": [], "name": 3}', "expected 'name' to be text or null, found 3"),
        ('{"points": [], "kind": "close"}', "expected 'kind' to be 'near' or 'far', found \"close\""),
        ('{"points": [], "on": 1}', "expected 'on' to be true or false, found 1"),
        (f'{{"points": [], "name": {{"a": "{50 * "x"}"}}}}', "expected 'name' to be text, found an object with 'a'"),
        ("[" * 100_000, "expected JSON, found too many digits, or brackets within too many others"),
        ("1" * 5_000, "expected JSON, found too many digits, or brackets within too many others"),
    ],
)
def test_what_is_expected_and_what_is_found(text: str, sentence: str) -> None:
    with pytest.raises(Misfit) as caught:
        parsed(text, Places)
    assert str(caught.value) == sentence


def test_what_fits_comes_back_as_it_was_written() -> None:
    text = '{"points": [{"x": 1, "y": 2}], "name": "\\udcff", "kind": "far", "on": false, "other": NaN}'
    found = cast(Any, parsed(text, Places))
    assert found["points"] == [Point(1, 2)]
    assert isinstance(found["points"][0].y, int)  # a fingerprint is over the text
    assert (found["name"], found["kind"], found["on"]) == ("\udcff", "far", False)
    assert found["other"] != found["other"]
    assert cast(Any, parsed("[1, 2.5]", tuple[float, ...])) == (1, 2.5)


# ------------------------------------------------------------ files that are refused


def shard_manifest(folder: Path) -> tuple[Path, Callable[[], object]]:
    write_folder(folder, [2])
    return folder / "manifest.json", lambda: read_manifest(folder)


def checkpoint(folder: Path) -> tuple[Path, Callable[[], object]]:
    place = folder / "step-00000001"
    place.mkdir()
    return place / "manifest.json", lambda: open_whole(place)


def samples_to_go_on_with(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "protocol.json", lambda: begin_or_go_on(folder, {"num_samples": 4})


def samples_to_judge(folder: Path) -> tuple[Path, Callable[[], object]]:
    write_images(folder / "images", pictures(range(2)))
    return folder / "protocol.json", lambda: own_protocol(open_images(folder))


def result_to_compare_with(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "old.json", lambda: evaluate(folder, folder, against=folder / "old.json")


def plan(folder: Path) -> tuple[Path, Callable[[], object]]:
    config = load_config(EncodeConfig, None, [f"source.path={folder}", f"output={folder}", "image_size=32"])
    (folder / "encoding").mkdir()
    return folder / "encoding" / "plan.json", lambda: join(config)


def pipeline(name: str) -> Callable[[Path], tuple[Path, Callable[[], object]]]:
    files = {
        "model_index.json": {"_class_name": "DiTPipeline"},
        "transformer/config.json": {"_class_name": "DiTTransformer2DModel", "norm_eps": 1e-6},
        "scheduler/scheduler_config.json": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        "vae/config.json": {},
    }

    def make(folder: Path) -> tuple[Path, Callable[[], object]]:
        for file, content in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(json.dumps(content))
        return folder / name, lambda: read_pipeline(folder)

    return make


def configuration(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "config.yaml", lambda: load_config(Config, folder / "config.yaml")


REFUSED = {
    "manifest of shards": shard_manifest,
    "manifest of a checkpoint": checkpoint,
    "protocol of samples to go on with": samples_to_go_on_with,
    "protocol of samples to judge": samples_to_judge,
    "--against": result_to_compare_with,
    "plan of an encoding": plan,
    "index of a pipeline": pipeline("model_index.json"),
    "transformer of a pipeline": pipeline("transformer/config.json"),
    "scheduler of a pipeline": pipeline("scheduler/scheduler_config.json"),
    "autoencoder of a pipeline": pipeline("vae/config.json"),
    "configuration": configuration,
}
ALLOWED = {  # an empty object leaves all at its default, which something else may refuse
    ("protocol of samples to judge", "empty"),
    ("autoencoder of a pipeline", "empty"),
    ("configuration", "empty"),
    ("configuration", "null"),
    ("configuration", "nothing"),
}


CASES = [(file, wrong) for file in REFUSED for wrong in WRONG if (file, wrong) not in ALLOWED]


@pytest.mark.parametrize(("file", "wrong"), CASES)
def test_a_file_of_something_else_is_refused(file: str, wrong: str, tmp_path: Path) -> None:
    path, read = REFUSED[file](tmp_path)
    path.write_text(WRONG[wrong])
    with pytest.raises(InputError) as caught:
        read()
    said = str(caught.value)
    assert not PYTHON.search(said.replace(str(tmp_path), "")), said
    assert "\n" not in said and "; " in said, said
    if file != "configuration":  # YAML, of which its own library tells
        assert SAYS[wrong] in said
    assert str(path if "checkpoint" not in file else path.parent) in said


@pytest.mark.parametrize("wrong", WRONG)
def test_an_autoencoder_file_with_another_description(wrong: str, tmp_path: Path) -> None:
    for metadata in ({"autoencoder": WRONG[wrong]}, {}):
        save_file({"a": torch.zeros(1)}, tmp_path / AUTOENCODER, metadata)
        with pytest.raises(InputError, match=r"is not a whole .*; copy it from the shards") as caught:
            load_autoencoder(str(tmp_path))
        assert not PYTHON.search(str(caught.value).replace(str(tmp_path), "")), caught.value


def test_a_checkpoint_whose_digest_fits_is_still_looked_at(tmp_path: Path) -> None:
    place = tmp_path / "step-00000001"
    place.mkdir()
    write_manifest(place, {"position": {"step": 1}})
    with pytest.raises(InputError, match="expected the key 'adam_step', found only 'format_version', 'position'"):
        open_whole(place)


# ------------------------------------------------------------ files that are done without


START = {"event": "start", "step": 0, "time": 1.0, "world_size": 1}
STEP = {"step": 1, "step_seconds": 0.5, "images_per_second": 4.0, "loss": 1.0, "time": 2.0}


@pytest.mark.parametrize("wrong", WRONG)
def test_lines_of_something_else_in_a_run_folder(wrong: str, tmp_path: Path) -> None:
    lines = [json.dumps(START), WRONG[wrong], '{"event": "end", "step": 1, "time": 2.0, "saved": true}']
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(f"{json.dumps(STEP)}\n{WRONG[wrong]}\n{json.dumps(STEP | {'step': 2})}\n{WRONG[wrong]}\n")
    (tmp_path / "config.yaml").write_text(WRONG[wrong])
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "step-00000001.json").write_text(WRONG[wrong])
    (tmp_path / BAD_STEPS).write_text(f'{WRONG[wrong]}\n{{"step": 7}}\n')
    (tmp_path / STOPPED).write_text(WRONG[wrong])
    (tmp_path / HUNG).write_text('{"reason": 3, "step": "many"}')

    found = look(tmp_path)
    assert (found.state, found.step, found.total_steps, found.images_per_second) == ("stopped", 2, None, 4.0)
    record = read_record(tmp_path)
    assert (record.curves["loss"].steps, record.evaluations) == ([1, 2], [])
    assert _steps_in(tmp_path / BAD_STEPS) == [7]
    assert (read_marker(tmp_path, STOPPED), read_marker(tmp_path, HUNG)) == ({}, {})
    assert "stopped (reason unknown) at step ?" in decide(tmp_path, Limits()).sentence
    cut_back(metrics, 1)
    assert metrics.read_text() == f"{json.dumps(STEP)}\n"


@pytest.mark.parametrize("wrong", WRONG)
def test_a_receipt_of_something_else_is_none(wrong: str, tmp_path: Path) -> None:
    config = load_config(EncodeConfig, None, [f"source.path={tmp_path}", f"output={tmp_path}", "image_size=32"])
    job = Job(config, cast(Any, ()), {})
    (tmp_path / "encoding").mkdir()
    (tmp_path / "encoding" / "shard-000000.json").write_text(WRONG[wrong])
    assert (job.receipt(0), job.made_with(0)) == (None, None)


def test_no_reader_forgets_the_rule() -> None:
    """Whoever reads JSON does so by ``documents``; what else does has a reason that is written here."""
    exceptions = {
        "dit_scale/documents.py",
        "dit_scale/supervision/heartbeats.py",  # from a rank of the same run, not from a file
        "dit_scale/supervision/hangs.py",  # likewise
        "dit_scale/checkpoint/layout.py",  # of its own values, as they will read back
        "dit_scale/checkpoint/retention.py",  # asks for one number, and any trouble is none
        "dit_scale/doctor/finding.py",  # of its own values
        "preprocessing/planning.py",  # of its own values
    }
    root = Path(__file__).parent.parent
    sources = [path for package in ("dit_scale", "preprocessing") for path in (root / package).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in sources if re.search(r"\bjson\.loads?\(", path.read_text())}
    assert found == exceptions
