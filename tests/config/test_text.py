"""A field of text takes the characters as typed, on the command line and in YAML as far as YAML allows."""

from pathlib import Path
from typing import Any, get_origin

import pytest

from dit_scale.config import Config, EncodeConfig, get, load_config
from dit_scale.config.describing import sentence as sentence_of
from dit_scale.config.fields import element, unwrap
from dit_scale.errors import InputError
from dit_scale.jobs.submit import Chain
from tests.config.walk import SCHEMAS, Place, parametrized, places

WORDS = ["2026_11_27", "0042", "1e3", "12:30", "on", "No", "0x1F", "2026-11-27", "1.0", ".5", "nan", "a=b", "true"]
"""Bare words that YAML gives another type, or may."""
TYPED = ["run #2", "a: b", "[a", "- x", "'quoted'", '"', "*", "&a", "%", " a", "ünï/ログ", "a\\b", "@x", "!x", "null "]
"""What a shell passes on, but bare YAML does not."""
NULLS = ["null", "~", "Null", ""]


def holds_text(kind: Any) -> bool:
    """Whether a dictionary's or a tuple's values, however deep, are text."""
    return kind is str or (get_origin(kind) in (dict, tuple) and holds_text(element(kind)))


TEXT = [place for place in places() if unwrap(place.entry.type)[0] in (str, Any)]
NESTED = [place for place in places() if place.entry.type is not str and holds_text(place.entry.type)]


def from_yaml(place: Place, text: str, folder: Path) -> Any:
    *sections, name = place.key.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    path = folder / "config.yaml"
    path.write_text("\n".join([*lines, f"{'  ' * len(sections)}{name}: {text}\n"]), encoding="utf-8")
    return get(load_config(place.schema, path, place.needed), place.key)


def test_the_walk_finds_text_fields() -> None:
    assert {"run_dir", "data.path", "wandb.name", "source.labels", "encode.command", "solver"} <= {p.key for p in TEXT}
    assert {place.key for place in NESTED if place.schema in (Config, Chain)} >= {"data.class_names", "paths"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_as_typed(schema: type, tmp_path: Path) -> None:
    fields = [place for place in TEXT if place.schema is schema and place.key != "data.cache"]  # which a path rules
    needed = [word for place in fields for word in place.needed if word not in SCHEMAS[schema]]
    for word in [*WORDS, *TYPED]:
        config = load_config(schema, None, [*needed, *(f"{place.key}={word}" for place in fields)])
        assert {place.key: get(config, place.key) for place in fields} == dict.fromkeys((p.key for p in fields), word)


@parametrized(iter(TEXT))
def test_as_written(place: Place, tmp_path: Path) -> None:
    for word in WORDS:
        assert from_yaml(place, word, tmp_path) == word
    for word in ("null", "~", "run #2"):  # in quotes YAML has no type of its own for it
        assert from_yaml(place, f'"{word}"', tmp_path) == word


@parametrized(place for place in TEXT if unwrap(place.entry.type) == (str, True))
def test_null_is_null_where_the_field_may_be(place: Place, tmp_path: Path) -> None:
    for word in NULLS:
        config = load_config(place.schema, None, [*place.needed, f"{place.key}={word}"])
        assert get(config, place.key) is None
        assert from_yaml(place, word, tmp_path) is None


@parametrized(place for place in TEXT if unwrap(place.entry.type) == (str, False))
def test_null_is_text_where_it_is_typed_and_refused_in_a_file(place: Place, tmp_path: Path) -> None:
    config = load_config(place.schema, None, [*place.needed, f"{place.key}=null"])
    assert get(config, place.key) == "null"
    with pytest.raises(InputError, match=f"{place.key}=null is not text; give text"):
        from_yaml(place, "null", tmp_path)
    if place.entry.default != "":
        with pytest.raises(InputError, match=f"{place.key}= is empty; give text"):
            load_config(place.schema, None, [*place.needed, f"{place.key}="])


@parametrized(iter(NESTED))
def test_names_and_values_in_a_dictionary_or_a_list(place: Place, tmp_path: Path) -> None:
    depth, is_list = str(place.entry.type).count("dict"), str(place.entry.type).startswith("tuple")
    for word in WORDS:
        value, expected = (f"[{word}]", (word,)) if is_list else (word, word)
        for _ in range(depth):
            value, expected = f"{{{word}: {value}}}", {word: expected}  # type: ignore[assignment]
        config = load_config(place.schema, None, [*place.needed, f"{place.key}={value}"])
        assert get(config, place.key) == expected
        assert from_yaml(place, value, tmp_path) == expected


def test_an_entry_by_its_dotted_name() -> None:
    needed = ["encode.command=c"]
    assert load_config(Chain, None, [*needed, "paths.run=2026_11_27"]).paths == {"run": "2026_11_27"}


def test_a_path_may_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: r\ndata:\n  path: {2026_11_27: 1, b: 2.5}\n")
    assert load_config(Config, path).data.path == {"2026_11_27": 1, "b": 2.5}
    assert load_config(Config, None, ["run_dir=r", "data.path={on: 1, b: 2}"]).data.path == {"on": 1, "b": 2}
    assert load_config(Config, path, ["data.path=on"]).data.path == "on"


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell sees to it in YAML, nor behind the ``=`` of a dotted key."""
    monkeypatch.setenv("HOME", "/home/x")
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: ~/r\ndata: {path: {~/a: 1, b/~/c: 2}, class_names: {~/a: {c: d}}}\nwandb: {name: '~'}\n")
    config = load_config(Config, path, ["init_from=~/w.pt"])
    assert (config.run_dir, config.init_from, config.wandb.name) == ("/home/x/r", "/home/x/w.pt", "~")
    assert (list(config.data.path), list(config.data.class_names)) == (["/home/x/a", "b/~/c"], ["/home/x/a"])
    assert load_config(Chain, None, ["paths.run=~/runs/b", "site=~root/s"]).paths == {"run": "/home/x/runs/b"}


def test_a_brace_after_a_dollar_is_resolved_unless_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data/0042")
    written = {"${oc.env:SOMEWHERE}/x": "/data/0042/x", r"a\${x}": "a${x}", "$x": "$x", "a$": "a$", "{x}": "{x}"}
    path = tmp_path / "config.yaml"
    for text, meant in written.items():
        assert load_config(Config, None, [f"run_dir={text}", "data.path=d"]).run_dir == meant
        path.write_text(f"run_dir: '{text}'\ndata: {{path: d}}\n")
        assert load_config(Config, path).run_dir == meant
    for text in ("a${x}", "${oc.env:NOWHERE_TO_BE_FOUND}", "${nothing:a}", "${"):
        with pytest.raises(InputError, match=r"write \\\$\{ for these characters themselves"):
            load_config(Config, None, [f"run_dir={text}", "data.path=d"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.path={A:1,B:2}", "data.path={A:1, B:2} lacks a blank after the colon of 'A:1'; write {name: value, …}"),
        ("data.path={s3://a/b:1}", "data.path={s3://a/b:1} lacks a blank after the colon of 's3://a/b:1'"),
        ("preview.solver_options={eta:1}", "preview.solver_options={eta:1} lacks a blank after the colon of 'eta:1'"),
        ("data.path={s3://a/b}", "data.path gives 's3://a/b' the weight null"),
        ("data.path={'A:1': 2, 'B:2'}", "data.path gives 'B:2' the weight null"),
    ],
)
def test_a_blank_that_yaml_needs(override: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Config, None, ["run_dir=r", "data.path=d", override])
    assert sentence in str(caught.value)


def test_one_number_stands_for_a_list_where_the_help_says_so(tmp_path: Path) -> None:
    needed = ["source.path=s", "output=o"]
    assert load_config(EncodeConfig, None, [*needed, "autoencoder.scale=0.18215"]).autoencoder.scale == (0.18215,)
    path = tmp_path / "config.yaml"
    path.write_text("autoencoder: {scale: 2, shift: -1e-1}\n")
    config = load_config(EncodeConfig, path, needed)
    assert (config.autoencoder.scale, config.autoencoder.shift) == ((2.0,), (-0.1,))
    assert load_config(EncodeConfig, path, [*needed, "autoencoder.scale=null"]).autoencoder.scale is None
    for wrong, sentence in (
        ("x", "autoencoder.scale=x is not a number; give"),
        ("0", "autoencoder.scale[0]=0.0 is out"),
    ):
        with pytest.raises(InputError) as caught:
            load_config(EncodeConfig, path, [*needed, f"autoencoder.scale={wrong}"])
        assert sentence in str(caught.value)
    told = [place.key for place in places() if "one number or one a" in sentence_of(place.section, place.entry.name)]
    assert told == ["autoencoder.scale", "autoencoder.shift"]
    assert all(
        place.entry.metadata["or_one"] == (place.key in told) for place in places() if place.entry.metadata.get("range")
    )


def test_interpolation_goes_on_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data/0042")
    path = tmp_path / "config.yaml"
    path.write_text(
        "run_dir: ${oc.env:SOMEWHERE}/run\ndata: {path: '${run_dir}/x'}\ntrain: {warmup_steps: '${seed}'}\n"
    )
    config = load_config(Config, path, ["seed=7", "init_from=${run_dir}", "train.steps=${train.warmup_steps}"])
    assert (config.run_dir, config.data.path, config.init_from) == (
        "/data/0042/run",
        "/data/0042/run/x",
        config.run_dir,
    )
    assert (config.train.warmup_steps, config.train.steps) == (7, 7)


def test_yamls_own_means_go_on_working(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "run_dir: >-\n  a\n  b\ndata: {path: d}\n.x: &x {every_steps: 7}\npreview:\n  <<: *x\n  cfg_scale: 1.5\n"
        "validation: {every_steps: 0}\n"
    )
    with pytest.raises(InputError, match=r"unknown key '\.x'"):
        load_config(Config, path)
    path.write_text(path.read_text().replace(".x: &x {every_steps: 7}\n", "log: &x {every_steps: 7}\n"))
    config = load_config(Config, path)
    assert (config.run_dir, config.preview.every_steps, config.preview.cfg_scale) == ("a b", 7, 1.5)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("run_dir: r\nrun_dir: s\n", "run_dir is given twice"),
        ("train: {steps: 1, steps: 2}\n", "train.steps is given twice"),
        ("- a\n", "not a mapping of keys to values"),
        ("train: 3\n", "train=3 is not a section; give a key of it, such as train.steps=…"),
        ("run_dir: [a]\n", "run_dir=[a] is not text; give text"),
        (
            "run_dir: r\ntrain:\n\tsteps: 1\n",
            "is not valid YAML (found character '\\t' that cannot start any token in line 3)",
        ),
        ("a: &a {b: *a}\n", "is not valid YAML"),
        ("? [a]\n: b\n", "[a] is not the name of a setting"),
        ("run_dir: !!python/object:os.system x\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_cannot_be_read_gets_one_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_config(Config, path, ["run_dir=r", "data.path=d"] if "run_dir: r\n" not in content else ["data.path=d"])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
