"""Progress of long work: what is done, how fast and how long it takes still; on any way out of the body."""

import re

import pytest

from dit_scale import progress
from dit_scale.progress import passed_on, shown


def test_the_last_line_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(passed_on("scored", iter([[1, 2], [3]]), 3, "images", len)) == [[1, 2], [3]]
    assert re.fullmatch(r"scored 3/3  \d+\.\d images/s  left 0 s\n", capsys.readouterr().err)


def test_lines_follow_while_it_goes_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.01)
    said = ""
    for number in passed_on("checked", range(3), 3):
        wanted = f"checked {number}/3  "
        while wanted not in said:  # the test's own time-out ends this
            said += capsys.readouterr().err
    assert "shards/s" in said


def test_work_that_fails_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), shown("encoded", 9, lambda: 4):
        raise RuntimeError
    assert capsys.readouterr().err == "encoded 4/9  0.0 images/s  left unknown\n"


def test_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(passed_on("checked", [], 0)) == []
    assert capsys.readouterr().err == ""
