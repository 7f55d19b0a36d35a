"""A key without effect under the choices made is refused by name, unless a later choice made it so."""

from dataclasses import fields
from pathlib import Path

import pytest

from dit_scale.config import Config, EncodeConfig, config_from, load_config, resolved, to_yaml, used
from dit_scale.errors import InputError
from tests.config.walk import places

NEEDED = ["run_dir=r", "data.path=d"]


@pytest.mark.parametrize(
    ("schema", "overrides", "sentence"),
    [
        (
            Config,
            ["diffusion.name=flow", "diffusion.prediction=v"],
            "prediction=v has no effect with diffusion.name=flow; leave it out, or give diffusion.name=gaussian",
        ),
        (
            Config,
            ["diffusion.name=flow", "diffusion.schedule=cosine"],
            "schedule=cosine has no effect with diffusion.name",
        ),
        (
            Config,
            ["diffusion.name=flow", "diffusion.num_timesteps=9"],
            "num_timesteps=9 has no effect with diffusion.name",
        ),
        (Config, ["diffusion.time_distribution=logit_normal"], "has no effect with diffusion.name=gaussian"),
        (Config, ["diffusion.name=flow", "diffusion.logit_mean=1"], "give diffusion.time_distribution=logit_normal"),
        (Config, ["data.shuffle_window_blocks=3"], "give data.shuffle_block_records above 0"),
        (Config, ["train.final_learning_rate=1e-5"], "give train.rate_schedule=cosine"),
        (Config, ["engine.zero_stage=0", "engine.offload_optimizer=true"], "give engine.zero_stage=1, 2 or 3"),
        (Config, ["engine.zero_stage=0", "engine.bucket_elements=5"], "give engine.zero_stage=1, 2 or 3"),
        (Config, ["engine.zero_stage=3", "engine.reduce_to_owners=false"], "give engine.zero_stage=1 or 2"),
        (Config, ["engine.hierarchical_partitioning=true"], "give engine.zero_stage=3"),
        (Config, ["engine.activation_budget=0.5"], "has no effect with engine.compile=false"),
        (Config, ["checkpoint.best_by=fid"], "give checkpoint.keep_best above 0"),
        (Config, ["validation.num_images=5"], "give validation.every_steps above 0"),
        (Config, ["evaluation.solver=ddpm"], "give evaluation.every_steps above 0"),
        (Config, ["evaluation.batch_size=3"], "give evaluation.every_steps above 0"),
        (Config, ["preview.every_steps=0", "preview.classes=[1]"], "give preview.every_steps above 0"),
        (
            Config,
            ["wandb.mode=disabled", "wandb.name=x"],
            "has no effect with wandb.mode=disabled; leave it out, or give",
        ),
        (EncodeConfig, ["autoencoder.pca_channels=5"], "give autoencoder.name=pca"),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.revision=main"], "or give another autoencoder.name"),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.compile=true"], "or give another autoencoder.name"),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.precision=bf16"], "or give another autoencoder.name"),
        (
            EncodeConfig,
            ["autoencoder.measure_scale=true", "autoencoder.scale=[0.5]"],
            "give autoencoder.measure_scale=fal",
        ),
        (EncodeConfig, ["autoencoder.name=.", "autoencoder.revision=main"], "a local folder; leave it out"),
        (EncodeConfig, ["source.format=folders", "source.labels=x"], "give source.format=auto, flat or tars"),
    ],
)
def test_a_key_without_effect_is_refused_by_name(schema: type, overrides: list[str], sentence: str) -> None:
    needed = NEEDED if schema is Config else ["source.path=s", "output=o"]
    with pytest.raises(InputError) as caught:
        load_config(schema, None, [*needed, *overrides])
    assert str(caught.value).startswith(f"{overrides[-1].partition('=')[0]}=")
    assert sentence in str(caught.value)
    with pytest.raises(InputError, match="has no effect"):
        load_config(schema, None, [*needed, *reversed(overrides)])  # the order of words says nothing


def test_a_file_alone_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("evaluation:\n  solver: ddpm\n")
    with pytest.raises(InputError, match=r"evaluation\.solver=ddpm has no effect with evaluation\.every_steps=0"):
        load_config(Config, path, NEEDED)


def test_what_a_later_choice_makes_moot_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "diffusion: {name: flow, time_distribution: logit_normal, logit_std: 2}\n"
        "preview: {cfg_scale: 2, every_steps: 5}\n"
    )
    config = load_config(Config, path, [*NEEDED, "diffusion.name=gaussian", "preview.every_steps=0"])
    assert (config.diffusion.time_distribution, config.diffusion.logit_std) == ("uniform", 1.0)
    assert config.preview.cfg_scale == 4.0
    path.write_text(to_yaml(config))
    assert load_config(Config, path) == config
    with pytest.raises(InputError, match=r"diffusion\.logit_mean=1.0 has no effect"):
        load_config(Config, path, [*NEEDED, "diffusion.logit_mean=1"])


def test_defaults_may_stand_anywhere() -> None:
    config = load_config(Config, None, NEEDED)
    given = [f"diffusion.{entry.name}={getattr(config.diffusion, entry.name)}" for entry in fields(config.diffusion)]
    assert load_config(Config, None, [*NEEDED, *given]) == config


def test_what_an_older_version_stored_is_read(tmp_path: Path) -> None:
    before = resolved(load_config(Config, None, [*NEEDED, "diffusion.name=flow"]))
    before["diffusion"]["prediction"] = "v"
    before["train"] |= {"max_grad_norm": -1.0, "spike_factor": 0.5}
    stored = config_from(Config, before)
    assert (stored.diffusion.prediction, stored.train.max_grad_norm) == ("v", -1.0)
    assert used(stored).diffusion == load_config(Config, None, [*NEEDED, "diffusion.name=flow"]).diffusion
    path = tmp_path / "config.yaml"
    path.write_text("source: {path: s}\noutput: o\nautoencoder: {name: pca, precision: bf16}\n")
    assert load_config(EncodeConfig, path, is_stored=True).autoencoder.precision == "fp32"
    with pytest.raises(InputError, match=r"autoencoder\.precision=bf16 has no effect"):
        load_config(EncodeConfig, path)


def test_a_condition_names_another_field_of_its_section() -> None:
    found = 0
    for place in places():
        names = {entry.name for entry in fields(place.section)} - {place.entry.name}
        condition = place.entry.metadata.get("only_if")
        assert condition is None or condition.name in names, place.key
        found += condition is not None
    assert found > 15
