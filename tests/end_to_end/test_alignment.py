"""A run whose tokens are aligned with a frozen encoder: its log, its resume, and what is left of it afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dit_scale.checkpoint import Checkpoint
from dit_scale.interop import read_weights
from tests.alignment.encoders import save_encoder
from tests.end_to_end.conftest import encode_settings
from tests.end_to_end.runs import lines, losses, settings
from tests.launch import run

ALIGNED = ["alignment.after_block=1", "alignment.projector_width=12", "diffusion.name=flow", "model.learn_sigma=false"]


@pytest.fixture(scope="module")
def with_crops(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of 4 x 8 x 8 with the images of 32 x 32 pixels that became them."""
    output = tmp_path_factory.mktemp("data") / "latents"
    run(["encode", "quickstart-encode", *encode_settings(images, output), "keep_crops=true"])
    return output


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "dinov2"
    save_encoder("dinov2", folder)
    return folder


@pytest.fixture(scope="module")
def aligned(with_crops: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO 2, to the end."""
    run_dir = tmp_path_factory.mktemp("aligned") / "run"
    run(settings(with_crops, run_dir, f"alignment.encoders=[{encoder}]", *ALIGNED, "engine.zero_stage=2"), ranks=2)
    return run_dir


def test_the_log_holds_the_term_and_the_run_folder_the_digest(aligned: Path, encoder: Path) -> None:
    metrics = lines(aligned / "metrics.jsonl")
    for line in metrics:
        terms = line["losses"]
        assert terms.keys() == {"mse", "alignment"}
        assert -1 <= terms["alignment"] <= 1
        assert line["loss"] == pytest.approx(terms["mse"] + 0.5 * terms["alignment"], rel=1e-5)
    assert metrics[-1]["losses"]["alignment"] < metrics[0]["losses"]["alignment"] - 0.02, "it is learnt"
    stored = yaml.safe_load((aligned / "config.yaml").read_text())["alignment"]
    assert stored["encoders"] == [str(encoder)]
    assert len(stored["encoder_digests"]) == 1 and len(stored["encoder_digests"][0]) == 32


@pytest.mark.parametrize(("stage", "ranks"), [(3, 2), (0, 1)])
def test_a_run_that_stopped_goes_on_as_if_it_had_not(
    aligned: Path, with_crops: Path, encoder: Path, stage: int, ranks: int, tmp_path: Path
) -> None:
    """From the checkpoint of step 4, at another stage and on another number of ranks: the same to rounding."""
    run_dir = tmp_path / "run"
    shutil.copytree(aligned, run_dir)
    for step in (8, 12):
        shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08d}")
    options = [f"alignment.encoders=[{encoder}]", *ALIGNED, f"engine.zero_stage={stage}"]
    run(settings(with_crops, run_dir, *options), ranks=ranks)
    assert losses(run_dir)[4:] == pytest.approx(losses(aligned)[4:], rel=1e-5)
    found, expected = (Checkpoint(folder / "checkpoints" / "step-00000012") for folder in (run_dir, aligned))
    projector = "projectors.0.4.weight"
    assert projector in found.shapes
    for kind in ("master", "ema", "exp_avg"):
        both = [one.read(kind, projector, 0, 50) for one in (found, expected)]
        torch.testing.assert_close(*both, rtol=1e-3, atol=1e-6)


def test_a_run_resumes_to_the_last_bit(aligned: Path, with_crops: Path, encoder: Path, tmp_path: Path) -> None:
    options = [f"alignment.encoders=[{encoder}]", *ALIGNED, "engine.zero_stage=2"]
    for steps in (5, 12):
        run(settings(with_crops, tmp_path / "run", *options, f"train.steps={steps}"), ranks=2)
    assert losses(tmp_path / "run") == losses(aligned)
    folders = [folder / "checkpoints" / "step-00000012" for folder in (tmp_path / "run", aligned)]
    assert Checkpoint(folders[0]).content_digests == Checkpoint(folders[1]).content_digests


def test_doctor_sees_encoders_and_crops(aligned: Path, with_crops: Path, encoder: Path, tmp_path: Path) -> None:
    options = [f"alignment.encoders=[{encoder}]", *ALIGNED, "engine.zero_stage=2", "train.steps=14"]
    told = run(["doctor", *settings(with_crops, aligned, *options)[1:]], check=False).stdout
    assert "goes on from step-00000012" in " ".join(told.split()) and str(encoder)[:8] in told
    without = settings(with_crops, tmp_path / "run", f"alignment.encoders=[{tmp_path / 'nowhere'}]", *ALIGNED)
    refused = run(["doctor", *without[1:], "--json", tmp_path / "doctor.json"], check=False)
    assert refused.returncode != 0
    found = {one["name"]: one for one in json.loads((tmp_path / "doctor.json").read_text())["findings"]}
    assert found["encoders"]["status"].lower() == "fail" and "nowhere" in found["encoders"]["figure"]


def test_another_encoder_is_refused(aligned: Path, with_crops: Path, tmp_path: Path) -> None:
    save_encoder("dinov2", tmp_path / "other", seed=1)
    digest = yaml.safe_load((aligned / "config.yaml").read_text())["alignment"]["encoder_digests"][0]
    other = f"alignment.encoders=[{tmp_path / 'other'}]"
    refusals = [
        ([other, *ALIGNED], "alignment.encoders is "),
        ([other, *ALIGNED, f"alignment.encoder_digests=[{digest}]"], f"and alignment.encoder_digests says {digest}"),
    ]
    base = ["engine.zero_stage=2", "diffusion.name=flow", "model.learn_sigma=false"]
    for options, sentence in refusals:
        refused = run(settings(with_crops, aligned, *base, *options), check=False)
        assert refused.returncode == 2, refused.stderr
        assert sentence in refused.stderr


def test_shards_without_crops_are_refused(shards: Path, tmp_path: Path) -> None:
    options = ["alignment.encoders=[efficientnet]", *ALIGNED]
    refused = run(settings(shards, tmp_path / "run", *options), check=False)
    assert refused.returncode == 2
    assert "encode again with keep_crops=true" in refused.stderr


def test_sampling_and_export_go_without_projectors(aligned: Path, tmp_path: Path) -> None:
    run(["export", aligned, "--to", "safetensors", "--out", tmp_path / "weights.safetensors"])
    weights = read_weights(tmp_path / "weights.safetensors")
    assert weights and not any(name.startswith("projectors") for name in weights)
    options = ["--num-samples", 2, "--num-sampling-steps", 2, "--solver", "euler", "--cfg-scale", 1]
    run(["sample", aligned, *options, "--out", tmp_path / "samples"])
    assert len(list((tmp_path / "samples" / "images").glob("*.png"))) == 2


def test_previews_and_validation_of_a_run_with_alignment_at_zero_3(
    with_crops: Path, encoder: Path, tmp_path: Path
) -> None:
    options = [f"alignment.encoders=[{encoder}]", *ALIGNED, "engine.zero_stage=3", "train.steps=4"]
    more = ["preview.every_steps=2", "preview.num_sampling_steps=2", "data.held_out_fraction=0.2"]
    run(settings(with_crops, tmp_path / "run", *options, *more, "validation.every_steps=1"), ranks=2)
    assert len(losses(tmp_path / "run")) == 4
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


def test_fine_tuning_takes_projectors_along(aligned: Path, with_crops: Path, encoder: Path, tmp_path: Path) -> None:
    options = [f"init_from={aligned}", f"alignment.encoders=[{encoder}]", *ALIGNED, "engine.zero_stage=1"]
    run(settings(with_crops, tmp_path / "run", *options, "train.steps=1", "train.learning_rate=0"))
    begun = Checkpoint(aligned / "checkpoints" / "step-00000012").whole("ema")
    found = Checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001").whole("master")
    for name in ("blocks.0.attn.qkv.weight", "projectors.0.2.weight"):
        assert torch.equal(found[name], begun[name])
