"""A section's settings as a command's options, and in its help."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from dit_scale.config import (
    Config,
    EncodeConfig,
    EvaluationConfig,
    PreviewConfig,
    SampleConfig,
    SamplingConfig,
    add_options,
    describe,
    load_config,
    read_options_of,
)
from dit_scale.errors import InputError
from tests.config.walk import places


def read(*words: str) -> SampleConfig:
    parser = argparse.ArgumentParser()
    add_options(parser, SampleConfig)
    return read_options_of(SampleConfig, parser.parse_args(words))


def test_options_are_the_settings_of_a_run() -> None:
    """What `sample` is told and what an evaluation is told come to the same."""
    words = "--solver ddpm --num-sampling-steps 250 --cfg-scale 1.5 --guidance-channels 3 --guidance-interval 0.1,0.8"
    given = read(*words.split(), "--guide-by", "early", "--solver-option", "time-shift=2", "--solver-option", "eta=1")
    overrides = [
        "solver=ddpm",
        "num_sampling_steps=250",
        "cfg_scale=1.5",
        "guide_by=early",
        "guidance_channels=3",
        "guidance_interval=[0.1,0.8]",
        "solver_options={time_shift: 2, eta: 1}",
    ]
    for section in ("preview", "evaluation"):
        settings = [f"{section}.{word}" for word in overrides]
        config = load_config(Config, None, ["run_dir=r", "data.path=d", f"{section}.every_steps=5", *settings])
        for entry in fields(SamplingConfig):
            assert getattr(getattr(config, section), entry.name) == getattr(given, entry.name)


def test_null_is_the_weaker_model_where_none_is_named(tmp_path: Path) -> None:
    assert read("--cfg-scale", "2", "--guide-by", "null") == read("--cfg-scale", "2")
    path = tmp_path / "config.yaml"
    path.write_text("preview: {guide_by: null}\n")
    needed = ["run_dir=r", "data.path=d"]
    assert load_config(Config, path, needed).preview.guide_by is None
    without_null = [*needed, "model.label_dropout=0", "evaluation.every_steps=0"]
    with pytest.raises(InputError, match=r"preview\.cfg_scale=4\.0 guides, but model\.label_dropout=0 leaves no null"):
        load_config(Config, path, without_null)
    assert load_config(Config, None, [*without_null, "preview.guide_by=early"]).preview.guide_by == "early"


def test_without_options_the_defaults_stand() -> None:
    assert read() == SampleConfig()
    assert (PreviewConfig().cfg_scale, EvaluationConfig().cfg_scale, SampleConfig().cfg_scale) == (4.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cfg-scale", "nan"], "--cfg-scale=nan is not a number; give a number of 0 or more"),
        (["--cfg-scale", "-2"], "--cfg-scale=-2.0 is out of range; give a number of 0 or more"),
        (["--num-sampling-steps", "0"], "--num-sampling-steps=0 is out of range; give a whole number of 1 or more"),
        (["--num-sampling-steps", "many"], "--num-sampling-steps=many is not a whole number"),
        (
            ["--guidance-channels", "0"],
            "--guidance-channels=0 is out of range; give a whole number of 1 or more, or null",
        ),
        (
            ["--cfg-scale", "2", "--guidance-interval", "0.8,0.1"],
            "--guidance-interval=[0.8, 0.1] does not rise from 0 (latent) to 1 (noise)",
        ),
        (["--guidance-interval", "0.5"], "--guidance-interval=[0.5] is not a list of 2 numbers"),
        (["--guidance-interval", "0,1.5"], "--guidance-interval[1]=1.5 is out of range; give a number in [0, 1]"),
        (
            ["--solver-option", "eta"],
            "--solver-option eta is not of the form NAME=X; write it like --solver-option eta=1",
        ),
        (
            ["--solver-option", "time-shift=2", "--solver-option", "time_shift=3"],
            "--solver-option time_shift is given twice, as 2 and as 3; give it once",
        ),
        (["--solver-option", "eta=x"], "--solver-option eta=x is not a number; give a number"),
        (["--solver-option", "time-shift=inf"], "--solver-option time_shift=inf is not finite; give a number"),
        (["--seed", "a"], "--seed=a is not a whole number"),
    ],
)
def test_a_mistake_names_the_option(words: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read(*words)
    assert sentence in str(caught.value)


def test_help_says_a_sentence_about_every_setting() -> None:
    for schema in (Config, EncodeConfig):
        lines = describe(schema).splitlines()
        assert len(lines) == 2 * sum(place.schema is schema for place in places())
        assert all(sentence.strip().endswith(".") for sentence in lines[1::2])
        assert not re.search("MISSING|object at|None|<", "\n".join(lines[::2]))


def test_help_says_what_a_setting_takes() -> None:
    lines = [line.strip() for line in (describe(Config) + "\n" + describe(EncodeConfig)).splitlines()]
    for line in (
        "train.ema_decay=0.9999  (in [0, 1))",
        "train.max_grad_norm=null  (above 0)",
        "train.spike_factor=0.0  (0 or above 1)",
        "train.extra_ema_decays=[]  (each in [0, 1))",
        "data.path  (weights above 0)",
        "data.class_names={}",
        "diffusion.prediction=epsilon  (one of epsilon, v, x0; with name=gaussian)",
        "preview.cfg_scale=4.0  (0 or more)",
        "evaluation.guidance_interval=[0.0, 1.0]  (each in [0, 1]; with cfg_scale not 1.0)",
        "autoencoder.revision=null  (with name not pca or fitted)",
    ):
        assert line in lines
