"""`dit-scale bench quality`: runs trained in pieces, in turn, are what one long run is; killed, it goes on."""

import json
from pathlib import Path

import pytest

from dit_scale.bench.quality import CHART, bench_quality
from dit_scale.cli import main
from dit_scale.errors import Failure
from tests.end_to_end.conftest import images, shards  # noqa: F401 (fixtures)
from tests.end_to_end.runs import TINY, lines
from tests.launch import run

SETTINGS = [
    *TINY,
    "train.steps=5",
    "train.rate_schedule=cosine",
    "evaluation.every_steps=3",
    "evaluation.num_images=16",
    "evaluation.num_sampling_steps=2",
]


class Started:
    """Starts the real command line in a process, as `start_child` does, in less time; counts, and can be killed."""

    def __init__(self, most: int = 100):
        self.words: list[list[str]] = []
        self._most = most

    def __call__(self, words: list[str], num_ranks: int, log: Path) -> int:
        if len(self.words) == self._most:
            raise KeyboardInterrupt
        self.words.append(words)
        result = run(words, num_ranks, check=False)
        log.write_text(result.stdout + result.stderr)
        return result.returncode


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """References are kept in a folder of this module's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "quality-cache"))


@pytest.fixture
def modern(tmp_path: Path) -> str:
    path = tmp_path / "modern.yaml"
    path.write_text("model: {norm: rmsnorm}\ndiffusion: {name: flow, cosine_weight: 1.0}\n")
    return str(path)


def test_pieces_in_turn_are_what_one_run_is_and_a_kill_costs_nothing(
    images: Path,  # noqa: F811
    shards: Path,  # noqa: F811
    modern: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, first, second = tmp_path / "out", Started(most=3), Started()
    settings = [*SETTINGS, f"data.path={shards}", f"evaluation.reference={images}"]
    with pytest.raises(KeyboardInterrupt):
        bench_quality(["quickstart", modern], settings, (0,), out, start=first)
    bench_quality(["quickstart", modern], settings, (0,), out, start=second)
    stops = [(Path(words[1]).stem, words[-1]) for words in first.words + second.words]
    assert stops == [(name, step) for step in ("3", "5") for name in ("quickstart", "modern")]

    whole = tmp_path / "whole"
    run(["train", str(out / "quickstart.yaml"), f"run_dir={whole}", "seed=0"])
    compared = ("step", "loss", "grad_norm", "learning_rate")
    ours, theirs = (lines(folder / "metrics.jsonl") for folder in (out / "quickstart" / "seed-0", whole))
    assert [[line[key] for key in compared] for line in ours] == [[line[key] for key in compared] for line in theirs]
    assert all(line["cpu_seconds"] > 0 for line in ours)

    report = json.loads((out / "quality.json").read_text())
    assert report["reference"] == f"the original images of '{images}'"
    assert report["settings"] == {"seeds": [0], "ranks": 1}
    points = report["configurations"]["quickstart"]["points"]["0"]
    for point in points:
        result = json.loads((whole / "evaluation" / f"step-{point['step']:08d}.json").read_text())
        assert point["distance"] == result["metrics"][report["metric"]]
    assert [point["step"] for point in points] == [3, 5]
    usual = sorted(line["cpu_seconds"] for line in ours if line["step"] not in (1, 4))[1]  # the median of three
    counted = [usual if line["step"] in (1, 4) else line["cpu_seconds"] for line in ours]
    assert [point["compute_seconds"] for point in points] == pytest.approx([sum(counted[:3]), sum(counted)])
    assert (out / CHART).read_bytes().startswith(b"\x89PNG")
    assert "distance at the end" in capsys.readouterr().out

    bench_quality(["quickstart", modern], settings, (0,), out, start=Started(most=0))  # all is there already
    with pytest.raises(Failure, match=r"quickstart, seed 1 ended with status 2 \(.*seed-1.*\); see '.*seed-1.log'"):
        Path(out / "quickstart" / "seed-1").write_text("in the way")
        bench_quality(["quickstart", modern], settings, (0, 1), out, start=second)


@pytest.mark.parametrize(
    "words, said",
    [
        (["train.steps=2"], "trains no configuration"),
        (
            ["quickstart", "configs/quickstart.yaml", "evaluation.every_steps=4"],
            "two configurations are called 'quickstart'",
        ),
        (["quickstart"], "evaluation.every_steps=0, which measures nothing"),
        (
            ["quickstart", "FEWER", "evaluation.every_steps=4"],
            "'quickstart' has evaluation.num_images=1000 and 'fewer' 20",
        ),
        (["quickstart", "ELSEWHERE", "evaluation.every_steps=1"], "learn other latents"),
        (["quickstart", "--seeds", "1,x"], "'x' is not a whole number"),
        (["quickstart", "--seeds", "1,1"], "--seeds 1,1 holds a seed twice"),
    ],
)
def test_bad_input_is_told_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "FEWER": "evaluation: {every_steps: 4, num_images: 20}\ndata: {path: here}\n",
        "ELSEWHERE": "data: {path: there}\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name.lower()}.yaml").write_text(text)
    given = [str(tmp_path / f"{word.lower()}.yaml") if word in files else word for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "quality", *given, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_runs_of_other_settings_are_not_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does the real starter leave its failure untold: the folder of latents is not there."""
    words = ["bench", "quality", "quickstart", "data.path=nowhere", "evaluation.every_steps=1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as failed:
        main(words)
    assert failed.value.code == 1
    assert "'nowhere'" in (tmp_path / "quickstart" / "seed-0.log").read_text()
    with pytest.raises(SystemExit) as refused:
        main([*words[:3], "train.learning_rate=1", *words[3:]])
    assert refused.value.code == 2
    assert "holds runs of 'quickstart' with other settings" in capsys.readouterr().err
