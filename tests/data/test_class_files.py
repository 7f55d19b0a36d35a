"""Files of class names: what is certain is read as meant, and a name never goes to another label."""

import logging
from pathlib import Path

import pytest

from dit_scale.data.class_files import read_names
from dit_scale.errors import InputError

NAMES = ("tench, Tinca tinca", "goldfish", "crane")


def test_names_are_read_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes("\ufeffcrane\r\ntench, Tinca tinca\r\ncrane\r\n\r\n".encode())
    assert read_names(path, "--class-names") == ("crane", "tench, Tinca tinca", "crane")
    for content, said in ((b"\n", "holds no name"), (b"caf\xe9", r"cannot be read \(it is not UTF-8 text\)")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"--class-names '{path}' {said}"):
            read_names(path, "--class-names")
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_names(tmp_path / "gone", "--class-names")


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("{0: 'tench, Tinca tinca',\n 1: 'goldfish',\n 2: \"crane\"}\n", NAMES, "read as a dictionary"),
        ('{"2": "crane", "0": "tench, Tinca tinca", "1": "goldfish"}', NAMES, "read as a dictionary"),
        ('{"crane": 2, "tench, Tinca tinca": 0, "goldfish": 1}', NAMES, "read as a dictionary"),
        ('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', ("n01440764", "n01443537"), "dictionary"),
        ("['tench, Tinca tinca', 'goldfish', 'crane',]", NAMES, "read as a list"),
        ("1 goldfish\n0 tench, Tinca tinca\n2 crane\n", NAMES, "the number that each line begins with is the label"),
        ("0: tench, Tinca tinca\n1:goldfish\n2: crane", NAMES, "the number that each line begins with"),
        ("0,tench, Tinca tinca\r\n1,goldfish\r\n2,crane\r\n\r\n", NAMES, "the number that each line begins with"),
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish\n", ("n01440764", "n01443537"), "the wnid that each line"),
        ("101 dalmatians\n7 dwarfs\n", ("101 dalmatians", "7 dwarfs"), None),
        ("0\n1\n10\n2\n", ("0", "1", "10", "2"), None),
        ("n01440764\nn01443537\n", ("n01440764", "n01443537"), None),
        ("cats\n2 dogs\n3 birds\n", ("cats", "2 dogs", "3 birds"), None),
        ("a\x85b\nc\n", ("a\x85b", "c"), None),  # a line end to str.splitlines alone
    ],
)
def test_forms_that_are_certain_are_read_as_meant(
    tmp_path: Path, text: str, names: tuple[str, ...], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "names"
    path.write_bytes(text.encode())
    with caplog.at_level(logging.INFO):
        assert read_names(path, "--class-names") == names
    assert len(caplog.messages) == (said is not None)
    assert said is None or (said in caplog.text and f"--class-names '{path}'" in caplog.text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n\nb\n", r"line 2 of --class-names '.*' is blank, and a line's place is its label; write the name there"),
        ("\na\n", "line 1 of .* is blank"),
        ("1 tench\n2 goldfish\n", "are numbered from 1, and labels count from 0; write a name a line"),
        ("{0: 'tench',\n", "begins with '{' and is no whole dictionary or list of JSON or Python; write a name a line"),
        ("{0: 'tench', 2: 'crane'}", "does not give each label from 0 to 1 one name; number the 2 names so, or"),
        ('{"tench": 0, "goldfish": 0}', "does not give each label from 0 to 1 one name"),
        ('{"tench": "fish"}', "does not give each label from 0 to 0 one name"),
        ('{"names": ["tench"]}', "does not give each label from 0 to 0 one name"),
        ("[1.5]", "is no dictionary of labels and names, nor a list of names"),
        ("{}", "is no dictionary of labels and names"),
        ('["tench", ""]', "is no dictionary of labels and names"),
        ("{1, 2}", "is a set of Python, which has no order"),
        ("{'tench', 'goldfish'}", r"is a set of Python, which has no order; write \[ \] for { }, or"),
        ("label,name\n0,tench\n1,crane\n", "but the first, 'label,name', are numbered, .* take the first one out"),
        ("names:\n  1: tench\n  2: crane\n", "but the first, 'names:', are numbered"),
        ("__import__('os')", None),
        ("[__import__('os')]", r"begins with '\[' and is no whole dictionary or list"),
    ],
)
def test_files_that_leave_a_label_without_its_name_are_refused(tmp_path: Path, text: str, said: str | None) -> None:
    path = tmp_path / "names"
    path.write_text(text)
    if said is None:
        assert read_names(path, "--class-names") == (text,)
        return
    with pytest.raises(InputError, match=said) as caught:
        read_names(path, "--class-names")
    assert len(str(caught.value)) < 400
