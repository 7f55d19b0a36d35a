"""Every command's options: a number has a range, a file to write is no folder, and what has no effect is refused."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from dit_scale.cli import _parser, main
from dit_scale.cli.arguments import new_file


def parsers(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command's parser, with its name."""
    yield " ".join(words), parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from parsers(command, (*words, name))


OPTIONS = [
    pytest.param(action, id=f"{name} {action.option_strings[0] if action.option_strings else action.dest}")
    for name, command in parsers(_parser())
    for action in command._actions
]


@pytest.mark.parametrize("action", OPTIONS)
def test_a_number_has_a_range(action: argparse.Action) -> None:
    """Settings given as options are read with their fields' ranges, which tests/config walks."""
    assert action.type in (None, Path, new_file) or hasattr(action.type, "limits") or action.choices is not None
    assert action.type is not None or not isinstance(action.default, int | float) or isinstance(action.default, bool)
    if not hasattr(action.type, "limits"):
        return
    limits = action.type.limits
    wrong = ["nan", "inf", "-inf", "many"]
    wrong += [str(low - 1) for low in [limits.at_least] if low is not None]
    wrong += [str(high + 1) for high in [limits.at_most] if high is not None]
    wrong += [str(bound) for bound in (limits.above, limits.below) if bound is not None]
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a "):
            action.type(text)


def test_the_walk_finds_numbers() -> None:
    found = {option.id for option in OPTIONS if hasattr(option.values[0].type, "limits")}  # type: ignore[union-attr]
    assert {
        "import --latent-scale",
        "index --scale",
        "index --shift",
        "sample --frames",
        "bench step --rounds",
    } <= found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("import w.pt --out r --latent-scale 0", "'0' is not a number above 0"),
        ("import w.pt --out r --latent-scale 1,-1", "'-1' is not a number above 0"),
        ("index f --autoencoder a --scale 0", "'0' is not a number above 0"),
        ("sample r --out o --guidance-channels 3", "--guidance-channels=3 has no effect with --cfg-scale=1.0"),
        (
            "sample r --out o --guidance-interval 0,1",
            "--guidance-interval=[0.0, 1.0] has no effect with --cfg-scale=1.0",
        ),
        ("sample r --out o --grid-over seed=1,2 --npz", "--npz has no effect with --grid-over, which writes one sheet"),
        ("sample r --out o --grid-over seed=1,2 --frames 0", "--frames 0 has no effect with --grid-over"),
        ("sample r --out o --grid-over seed=1,2 --batch-size 32", "--batch-size 32 has no effect with --grid-over"),
        (
            "sample r --out o --grid-over cfg-scale=1,2 --guidance-channels 3",
            "'r' holds no checkpoint",
        ),  # on to the next mistake
        ("status r --max-hangs 3", "--max-hangs 3 has no effect without --requeue; leave it out"),
        ("status r --requeue --json", "--json has no effect with --requeue"),
        ("plan quickstart --gpus 8 --classes 1000", "--classes 1000 has no effect without --image-size"),
        ("plan quickstart --gpus 8 --channels 4", "--channels 4 has no effect without --image-size"),
        ("verify f source.path=x", "'source.path=x' has no effect without --repair"),
        ("inspect f --cache c", "--cache c has no effect with 'f', a folder of this machine"),
        ("bench data f --mirrors none", "--mirrors none has no effect with 'f', which is there already"),
        ("report r --out FOLDER", "FOLDER' is a folder; give the path of a file"),
        ("evaluate a b --out FOLDER", "FOLDER' is a folder; give the path of a file"),
        ("plan quickstart --gpus 8 --json FOLDER", "FOLDER' is a folder; give the path of a file"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(
    words: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FOLDER").mkdir()
    assert sentence in refused(capsys, *words.replace("FOLDER", str(tmp_path / "FOLDER")).split())


def test_an_imported_run_has_nothing_to_report_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run folder (no config.yaml)" in refused(capsys, "report", tmp_path)
    (tmp_path / "config.yaml").touch()
    assert "holds no step to report on (no metrics.jsonl): it was imported" in refused(capsys, "report", tmp_path)


def test_a_folder_in_the_way_of_a_report_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.html").mkdir()
    assert "report.html' is a folder; move it, or give another path with --out FILE" in refused(
        capsys, "report", tmp_path
    )
