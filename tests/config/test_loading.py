"""Settings: defaults, files, overrides, and one clear sentence for each mistake."""

from pathlib import Path

import pytest

from dit_scale.config import Config, EncodeConfig, config_from, load_config, resolved, to_yaml
from dit_scale.errors import InputError

NEEDED = ["run_dir=r", "data.path=d"]
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
RECIPES = [path for path in CONFIGS if not path.stem.endswith("chain")]


def test_overrides_win_over_the_file_and_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: r\ndata: {path: d}\ntrain: {steps: 7, learning_rate: 1e-3}\n")
    config = load_config(Config, path, ["train.steps=9", "preview.classes=[1,2]"])
    assert (config.train.steps, config.train.learning_rate, config.preview.classes) == (9, 1e-3, (1, 2))
    path.write_text(to_yaml(config))
    assert load_config(Config, path) == config
    assert config_from(Config, resolved(config)) == config


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.stepz=4", "unknown key 'train.stepz'; did you mean 'steps'"),
        ("trian.steps=4", "unknown key 'trian'; did you mean 'train'"),
        ("steps=4", "unknown key 'steps'; did you mean 'train.steps'"),
        ("train.steps=many", "train.steps=many is not a whole number; give a whole number of 1 or more"),
        ("engine.zero_stage=5", "engine.zero_stage=5 is not known; choose one of 0, 1, 2, 3"),
        ("train.steps=0", "train.steps=0"),
        ("train.global_batch_size=-4", "train.global_batch_size=-4"),
        ("train.ema_decay=1.5", "train.ema_decay=1.5"),
        ("wandb.mode=ofline", "wandb.mode=ofline is not known; did you mean 'offline'?"),
        ("engine.compile=maybe", "engine.compile=maybe is not true or false; give one of them"),
        ("train=3", "train=3 is not a section; give a key of it, such as train.steps=…"),
        ("data.path={a: 1", "override 'data.path={a: 1' cannot be read (expected ',' or '}'"),
        ("--foo", "not of the form key.sub=value"),
    ],
)
def test_a_mistake_gets_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Config, None, [*NEEDED, override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mandatory_key_without_a_value_is_named() -> None:
    with pytest.raises(InputError, match=r"'data.path' has no value"):
        load_config(Config, None, ["run_dir=r"])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere.yaml.*did you mean|nowhere.yaml.*choose one of"):
        load_config(Config, "nowhere.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    schema, needed = (EncodeConfig, ["source.path=s", "output=o"]) if path.stem.endswith("encode") else (Config, NEEDED)
    load_config(schema, path, needed)  # type: ignore[arg-type]
