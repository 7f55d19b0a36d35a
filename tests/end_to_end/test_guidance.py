"""Guidance by weaker models as a user trains and names them: a second final layer, and another run."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dit_scale.checkpoint import Checkpoint
from dit_scale.classes import ClassNames
from dit_scale.config import OF_TRAINING, Config, config_from
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.sampling.other import check_guide, opened
from tests.end_to_end.runs import lines, losses, settings
from tests.launch import run

FAST = ["train.learning_rate=1"]  # of which warm-up leaves some hundredths: weights soon matter
EARLY = [*FAST, "model.early_block=1", "diffusion.early_weight=0.25"]
DRAW = ["--num-samples", 4, "--batch-size", 4, "--num-sampling-steps", 3, "--cfg-scale", 2]


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with an early layer at ZeRO 3, which stopped after four and went on."""
    run_dir = tmp_path_factory.mktemp("early") / "run"
    for steps in (4, 6):
        run(settings(shards, run_dir, *EARLY, "engine.zero_stage=3", f"train.steps={steps}"), ranks=2)
    return run_dir


@pytest.fixture(scope="module")
def gaussian(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step of Gaussian diffusion with learned variances and an early layer."""
    run_dir = tmp_path_factory.mktemp("gaussian") / "run"
    objective = ["diffusion.name=gaussian", "diffusion.early_weight=0.5", "model.learn_sigma=true"]
    run(settings(shards, run_dir, "model.early_block=1", *objective, "train.steps=1"))
    return run_dir


def drawn(run_dir: Path, out: Path, *options: object) -> dict[str, bytes]:
    run(["sample", run_dir, *DRAW, "--out", out, *options])
    return {path.name: path.read_bytes() for path in sorted((out / "images").iterdir())}


def refused(*arguments: object) -> str:
    result = run(list(arguments), check=False)
    assert result.returncode == 2, result.stderr
    return result.stderr


@pytest.mark.parametrize("stage", [0, 3])
def test_an_early_layer_is_trained_at_each_stage_and_resumes_to_the_last_bit(
    stage: int, trained: Path, shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    guide = "early" if stage == 0 else trained
    preview = ["preview.every_steps=6", "preview.num_sampling_steps=2", f"preview.guide_by={guide}"]
    run(settings(shards, run_dir, *EARLY, *preview, f"engine.zero_stage={stage}", "train.steps=6"), ranks=2)
    assert (run_dir / "samples" / "step-00000006.png").is_file()
    for ours, theirs in zip(lines(run_dir / "metrics.jsonl"), lines(trained / "metrics.jsonl"), strict=True):
        assert ours["loss"] == pytest.approx(ours["losses"]["mse"] + 0.25 * ours["losses"]["early"], rel=1e-5)
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    before, after = (Checkpoint(run_dir / "checkpoints" / f"step-0000000{step}") for step in (4, 6))
    for name in ("early_layer.linear.weight", "early_layer.adaLN_modulation.1.weight"):
        assert not torch.equal(before.whole("master")[name], after.whole("master")[name])
    if stage == 3:
        assert losses(run_dir) == losses(trained)
        assert after.content_digests == Checkpoint(trained / "checkpoints" / "step-00000006").content_digests


def test_the_early_layer_guides_and_is_exported(trained: Path, gaussian: Path, tmp_path: Path) -> None:
    by_null = drawn(trained, tmp_path / "null")
    by_early = drawn(trained, tmp_path / "early", "--guide-by", "early")
    assert by_early != by_null
    assert json.loads((tmp_path / "early" / "protocol.json").read_text())["guide_by"] == "early"
    assert "guide_by" not in json.loads((tmp_path / "null" / "protocol.json").read_text())
    assert drawn(gaussian, tmp_path / "gaussian", "--guide-by", "early")
    run(["export", trained, "--to", "safetensors", "--out", tmp_path / "weights.safetensors"])
    assert "early_layer.linear.weight" in load_file(tmp_path / "weights.safetensors")
    said = refused("import", tmp_path / "weights.safetensors", "--num-heads", "2", "--out", tmp_path / "back")
    assert "hold early_layer." in said and "dit-scale train init_from=" in said
    said = refused("export", gaussian, "--to", "diffusers", "--out", tmp_path / "pipeline")
    assert "has model.early_block=1, and DiTTransformer2DModel has 0" in said


def test_another_run_guides_by_its_own_weights(trained: Path, shards: Path, tmp_path: Path) -> None:
    weak = tmp_path / "weak"
    run(settings(shards, weak, *FAST, "model.depth=1", "model.label_dropout=0", "train.steps=2"))
    by_weak = drawn(trained, tmp_path / "a", "--guide-by", weak)
    by_step = drawn(trained, tmp_path / "b", "--guide-by", weak / "checkpoints" / "step-00000002")
    by_itself = drawn(trained, tmp_path / "c", "--guide-by", trained)
    alone = drawn(trained, tmp_path / "d", "--cfg-scale", 1)
    assert by_weak == by_step != by_itself
    assert by_itself == alone  # its output + 2 x nothing
    told = json.loads((tmp_path / "a" / "protocol.json").read_text())["guide_by"]
    assert (told["step"], told["weights"], len(told["weights_digest"])) == (2, "ema", 32)


def test_a_run_of_other_latents_or_classes_is_refused(gaussian: Path) -> None:
    path = str(gaussian)
    description = opened(path).description
    config, latents = config_from(Config, description.config), LatentSpec.from_json(description.data["latent"])
    names = ClassNames(description.data["class_names"])
    check_guide(path, config, latents, names)
    assert set(OF_TRAINING) < {entry.name for entry in fields(config.diffusion)}
    trained_otherwise = replace(config.diffusion, early_weight=0.125, min_snr_gamma=5.0)
    check_guide(path, replace(config, diffusion=trained_otherwise), latents, names)
    with pytest.raises(InputError, match="has latents of size 8, and this model 16; give a run of the same latents"):
        check_guide(path, config, replace(latents, size=16), names)
    with pytest.raises(InputError, match="has other classes, or in another order, than this model"):
        check_guide(path, config, latents, ClassNames(reversed(names)))
    for section, name, value in (("diffusion", "prediction", "v"), ("model", "condition", "none")):
        other = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        with pytest.raises(InputError, match=rf"has {section}\.{name} \w+, and this model {value}"):
            check_guide(path, other, latents, names)


def test_a_model_that_cannot_guide_is_refused(trained: Path, gaussian: Path, tmp_path: Path) -> None:
    flow = ["sample", trained, *DRAW, "--out", tmp_path / "out", "--guide-by"]
    other = ["sample", gaussian, *DRAW, "--out", tmp_path / "out", "--guide-by"]
    assert "has diffusion.name gaussian, and this model flow; give a run of the same latents" in refused(
        *flow, gaussian
    )
    assert "has diffusion.name flow, and this model gaussian" in refused(*other, trained)
    assert "'erly' is not the path of a run or a checkpoint; did you mean 'early'" in refused(*flow, "erly")
    assert "--guide-by=early has no effect with --cfg-scale=1.0" in refused(*flow, "early", "--cfg-scale", 1)
    assert not (tmp_path / "out").exists()
