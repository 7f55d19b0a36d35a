"""Class names: labels decide, equal names stay apart, and no sentence lists a thousand of them."""

import logging

import pytest

from dit_scale.classes import ClassNames
from dit_scale.errors import InputError, few, nearest

SPECIAL = {0: "tench, Tinca tinca", 134: "crane", 517: "crane"}
IMAGENET_LIKE = ClassNames(SPECIAL.get(label, f"class {label}") for label in range(1000))


@pytest.mark.parametrize("names", [IMAGENET_LIKE, ClassNames(["x"] * 1000), ClassNames(map(str, range(999, -1, -1)))])
def test_a_number_is_a_label_whatever_the_names(names: ClassNames) -> None:
    assert names.asked_for(["999", "1", "2"]) == [999, 1, 2]
    with pytest.raises(InputError, match=r"class 1000 is not a number below 1000, .*; give 0 to 999"):
        names.label_of("1000")


def test_an_ambiguous_name_is_refused_with_its_labels() -> None:
    with pytest.raises(InputError, match="'crane' is the name of labels 134 and 517; give the number"):
        IMAGENET_LIKE.asked_for(["crane"])
    assert IMAGENET_LIKE.asked_for(["134"]) == [134]
    with pytest.raises(InputError, match=r"labels 0, 1, .*, … \(1000 in all\); give the number") as caught:
        ClassNames(["x"] * 1000).label_of("x")
    assert len(str(caught.value)) < 300


def test_titles_tell_equal_names_apart_and_leave_others() -> None:
    assert [IMAGENET_LIKE.title(label) for label in (134, 517, 1)] == ["crane (134)", "crane (517)", "class 1"]
    assert IMAGENET_LIKE.twice() == {"crane": [134, 517]}


def test_a_name_with_a_comma_and_the_first_of_several() -> None:
    assert IMAGENET_LIKE.asked_for(["tench"]) == IMAGENET_LIKE.asked_for([], ["tench, Tinca tinca"]) == [0]
    with pytest.raises(InputError, match=r"did you mean 'tench, Tinca tinca'\? --class takes a name with a comma"):
        IMAGENET_LIKE.asked_for(["tench", "Tinca tinca"])
    names = ClassNames(["maillot", "maillot, tank suit", "bow, ribbon", "bow, stern"])
    assert names.label_of("maillot") == 0  # its whole name
    with pytest.raises(InputError, match="'bow' is the name of labels 2 and 3"):
        names.label_of("bow")


def test_digits_that_are_names_too(caplog: pytest.LogCaptureFixture) -> None:
    names = ClassNames(["1", "10", "2", "007"])  # folders sorted as text
    with caplog.at_level(logging.INFO):
        assert names.asked_for(["0"]) == [0]
        assert caplog.messages == []
        assert names.asked_for(["1", "2"], ["1"]) == [1, 2, 0]
    assert caplog.messages == ["class 1 is taken as label 1; the name '1' has label 0"]
    with pytest.raises(InputError, match=r"class 10 is not a number below 4, .*; it is the name of label 1: give that"):
        names.label_of("10")
    assert (names.label_of("007"), names.label_of("03")) == (3, 3)
    with pytest.raises(InputError, match="no class is named '3'; --classes 3 takes label 3"):
        names.label_named("3")
    with pytest.raises(InputError, match="no class is named '²'"):  # a digit to Python, no number
        names.label_of("²")


def test_a_class_is_asked_for_once() -> None:
    with pytest.raises(InputError, match="classes 'tench', '0' mean one label, 0; give each class once"):
        IMAGENET_LIKE.asked_for(["tench", "134", "0"])


@pytest.mark.parametrize("count", [1_000, 10_000])
def test_a_sentence_never_lists_all_names(count: int) -> None:
    names = [f"n{label:08d}, a class of that number" for label in range(count)]
    for sentence in (
        nearest("zzz", names),
        nearest("", names),
        nearest("n00000007, a class of that numbr", names),
        few(names),
        _refusal(ClassNames(names), "zzz"),
        _refusal(ClassNames(names[:1] * count), names[0]),
    ):
        assert 0 < len(sentence) < 300
    assert few(names[:2]) == ", ".join(names[:2])
    assert few(names).endswith(f"… ({count} in all)")


def _refusal(names: ClassNames, text: str) -> str:
    with pytest.raises(InputError) as caught:
        names.label_of(text)
    return str(caught.value)
