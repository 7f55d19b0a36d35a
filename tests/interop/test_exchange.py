"""Weights there and back by the command line: golden weights in published form, and a real DiTPipeline of them."""

import csv
import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import embeddings
from safetensors.torch import load_file, save_file

from dit_scale.autoencoder import PCACodec, save_autoencoder
from dit_scale.checkpoint import open_whole
from dit_scale.checkpoint.layout import read_manifest, write_manifest
from dit_scale.cli import main
from dit_scale.errors import InputError
from dit_scale.interop import exporting
from dit_scale.interop.exporting import export
from dit_scale.interop.pipeline_folder import read_pipeline
from dit_scale.models import DiT
from dit_scale.recipe import model_of
from dit_scale.sampling import sampler_of
from tests.launch import run
from tests.parity import load_tensors, load_tiny, record

WEIGHTS = Path(__file__).parent.parent / "golden" / "tiny_a_weights.safetensors"


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kl") / "kl"
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = diffusers.AutoencoderKL(
        block_out_channels=(16, 16), norm_num_groups=4, latent_channels=4, scaling_factor=0.18215, **blocks
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def imported(kl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "run"
    run(["import", WEIGHTS, "--num-heads", 4, "--autoencoder", kl, "--out", out])
    return out


@pytest.fixture(scope="module")
def pipeline_folder(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "pipeline"
    run(["export", imported, "--to", "diffusers", "--out", out])
    return out


def test_published_weights_are_sampled_at_once(imported: Path, tmp_path: Path) -> None:
    run(["sample", imported, "--num-samples", 2, "--num-sampling-steps", 3, "--cfg-scale", 2, "--out", tmp_path])
    assert len(list((tmp_path / "images").glob("*.png"))) == 2


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_published_formats_come_back_exact(form: str, imported: Path, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{form}"
    run(["export", imported, "--to", form, "--out", path])
    written = load_file(path) if form == "safetensors" else torch.load(path, weights_only=True)
    golden = load_file(WEIGHTS)
    assert written.keys() == golden.keys()
    assert all(torch.equal(written[name], golden[name]) for name in golden)


def test_a_pipelines_folder_comes_back_exact(pipeline_folder: Path, tmp_path: Path) -> None:
    run(["import", pipeline_folder, "--out", tmp_path / "run"])
    run(["export", tmp_path / "run", "--to", "safetensors", "--out", tmp_path / "weights.safetensors"])
    written, golden = load_file(tmp_path / "weights.safetensors"), load_file(WEIGHTS)
    assert all(torch.equal(written[name], golden[name]) for name in golden if name != "pos_embed")
    torch.testing.assert_close(written["pos_embed"], golden["pos_embed"])


def test_the_pipelines_transformer_is_the_model_but_for_one_constant(
    pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of diffusers' timestep frequencies one constant differs from the published ones; no weights can mend that."""
    pipeline = diffusers.DiTPipeline.from_pretrained(pipeline_folder)
    tiny = load_tiny("tiny_a")
    latent, time = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 40, 500, 999])
    label = torch.tensor([0, 3, 9, 10])
    theirs_label = torch.tensor([0, 3, 9, 1000])  # the null label of diffusers' pipeline

    def largest_difference(name: str) -> float:
        with torch.no_grad():
            theirs = pipeline.transformer(latent, timestep=time, class_labels=theirs_label).sample
            ours = tiny.model(latent, time, label)
        return record(f"interop.diffusers.{name}", theirs, ours)

    as_shipped = largest_difference("as_shipped")
    for module in pipeline.transformer.modules():
        if isinstance(module, embeddings.Timesteps):
            assert module.downscale_freq_shift == 1
            module.downscale_freq_shift = 0
    assert largest_difference("downscale_freq_shift=0") < 1e-5
    assert as_shipped > 1e-3


def test_the_pipeline_runs(pipeline_folder: Path) -> None:
    pipeline = diffusers.DiTPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=[1, 2], num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(16, 16), (16, 16)]


def test_sit_weights_are_of_flow(kl: Path, tmp_path: Path) -> None:
    options = ["--num-heads", 4, "--autoencoder", kl, "--objective", "flow"]
    run(["import", WEIGHTS, *options, "--out", tmp_path / "run"])
    run(["sample", tmp_path / "run", "--num-samples", 1, "--num-sampling-steps", 2, "--out", tmp_path / "out"])
    assert json.loads((tmp_path / "out" / "protocol.json").read_text())["solver"] == "heun"
    refused = run(["export", tmp_path / "run", "--to", "diffusers", "--out", tmp_path / "p"], check=False)
    assert refused.returncode == 2
    assert "flow" in refused.stderr
    assert load_tensors("tiny_a_flow_io")  # what those weights compute is held to in tests/diffusion


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_a_pipelines_transformer_must_hold_its_weights_and_no_others(
    change: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pipeline_folder, tmp_path / "pipeline")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["proj_out_2.bias"]
    else:
        weights["caption_projection.bias"] = torch.zeros(1)
    save_file(weights, path, metadata={"format": "pt"})
    name = "missing: proj_out_2.bias" if change == "missing" else "not in this model: caption_projection.bias"
    with pytest.raises(InputError, match=f"transformer' does not fit its own config.json .{name}.; copy the folder"):
        read_pipeline(folder)


def test_a_checkpoint_that_lacks_a_weight_is_neither_sampled_nor_exported(imported: Path, tmp_path: Path) -> None:
    out = shutil.copytree(imported, tmp_path / "run")
    checkpoint = out / "checkpoints" / "step-00000000"
    manifest = read_manifest(checkpoint)
    del manifest["parameters"]["blocks.0.attn.qkv.weight"]
    write_manifest(checkpoint, manifest)
    with pytest.raises(InputError, match=r"step-00000000' .*: blocks\.0\.attn\.qkv\.weight is absent there"):
        sampler_of(open_whole(out), "cpu")
    with pytest.raises(InputError, match=r"step-00000000' .*: blocks\.0\.attn\.qkv\.weight is absent there"):
        export(out, tmp_path / "weights.pt", "pt")


def test_the_pca_codec_is_given_as_the_folder_that_keeps_it(tmp_path: Path) -> None:
    refused = run(["import", WEIGHTS, "--num-heads", 4, "--autoencoder", "pca", "--out", tmp_path / "run"], check=False)
    assert refused.returncode == 2
    assert "autoencoder.name" not in refused.stderr  # which is no option of this command
    assert "give the folder with its autoencoder.safetensors" in refused.stderr
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_autoencoder(PCACodec.fit([images], patch_size=2, channels=4), tmp_path)
    run(["import", WEIGHTS, "--num-heads", 4, "--autoencoder", tmp_path, "--out", tmp_path / "run"])
    assert (tmp_path / "run" / "autoencoder" / "autoencoder.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--objective", "flow", "--prediction", "v"], "--prediction v has no effect with --objective flow"),
        (["--objective", "flow", "--schedule", "linear"], "--schedule linear has no effect with --objective flow"),
        (
            ["PIPELINE", "--prediction", "epsilon"],
            "--prediction epsilon has no effect with 'PIPELINE', the folder of a",
        ),
        (["PIPELINE", "--schedule", "cosine"], "--schedule cosine has no effect with 'PIPELINE'"),
        (["PIPELINE", "--objective", "gaussian"], "--objective gaussian has no effect with 'PIPELINE'"),
        (["PIPELINE", "--num-heads", "4"], "--num-heads 4 has no effect with 'PIPELINE'"),
        (["PIPELINE", "--latent-size", "8"], "--latent-size 8 has no effect with 'PIPELINE'"),
    ],
)
def test_an_option_that_the_weights_do_not_use_is_refused_by_name(
    options: list[str], sentence: str, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pipeline_folder if options[0] == "PIPELINE" else WEIGHTS
    with pytest.raises(SystemExit) as stopped:
        main(["import", str(source), *options[options[0] == "PIPELINE" :], "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert sentence.replace("PIPELINE", str(pipeline_folder)) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "has num_train_timesteps=0; give 1 or more"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "is a FlowMatchEulerDiscreteScheduler, of flow matching, but a DiTPipeline is read as one of Gaussian",
        ),
        ("vae/config.json", {"scaling_factor": 0}, "has scaling_factor=0; give one above 0 there"),
        ("vae/config.json", {"scaling_factor": -1}, "has scaling_factor=-1; give one above 0 there"),
    ],
)
def test_a_pipeline_whose_numbers_cannot_be(
    file: str, change: dict[str, float | str], sentence: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pipeline_folder, tmp_path / "pipeline")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        read_pipeline(folder)


def test_weights_that_are_not_finite_are_not_imported(
    kl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(WEIGHTS)
    weights["final_layer.linear.bias"][0] = torch.nan
    torch.save(weights, tmp_path / "w.pt")
    given = ["--num-heads", "4", "--autoencoder", str(kl), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        main(["import", str(tmp_path / "w.pt"), *given])
    assert stopped.value.code == 2
    assert "hold NaN or infinity in final_layer.linear.bias" in capsys.readouterr().err


def test_equal_class_names_stay_apart(kl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the pipeline's folder and back; and each label can be drawn."""
    names = ["crane", "tench, Tinca tinca", *(f"class {label}" for label in range(2, 8)), "crane", "3"]
    (tmp_path / "names").write_text("\n".join(names))
    given = ["--num-heads", "4", "--autoencoder", str(kl), "--class-names", str(tmp_path / "names")]
    main(["import", str(WEIGHTS), *given, "--out", str(tmp_path / "a")])
    main(["export", str(tmp_path / "a"), "--to", "diffusers", "--out", str(tmp_path / "pipeline")])
    main(["import", str(tmp_path / "pipeline"), "--out", str(tmp_path / "b")])
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["id2label"] == {str(label): name for label, name in enumerate(names)}
    draw = ["sample", str(tmp_path / "b"), "--num-sampling-steps", "1", "--num-samples", "10", "--batch-size", "10"]

    def drawn(*options: str) -> list[tuple[str, str]]:
        out = tmp_path / "-".join(("drawn", *options)).replace(" ", "")
        main([*draw, *options, "--out", str(out)])
        with (out / "labels.csv").open() as file:
            return [(row["label"], row["class"]) for row in csv.DictReader(file)]

    def refused(*options: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*draw, *options, "--out", str(tmp_path / "refused")])
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert drawn() == [(str(label), name) for label, name in enumerate(names)]
    assert drawn("--classes", "9,8") == [("9", "3"), ("8", "crane")] * 5
    assert drawn("--class", "tench, Tinca tinca", "--class", "3") == [("1", "tench, Tinca tinca"), ("9", "3")] * 5
    assert "'crane' is the name of labels 0 and 8; give the number" in refused("--classes", "crane")
    assert "class 10 is not a number below 10" in refused("--classes", "10")
    main([*draw, "--classes", "0", "--out", str(tmp_path / "one")])
    assert json.loads((tmp_path / "one" / "protocol.json").read_text())["classes"] == ["crane (0)"]
    again = [*draw, "--classes", "8", "--out", str(tmp_path / "one")]
    with pytest.raises(SystemExit):
        main(again)
    assert 'classes was ["crane (0)"] and is ["crane (8)"]' in capsys.readouterr().err
    index["id2label"] = {"a": "crane"}
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "pipeline"), "--out", str(tmp_path / "c")])
    assert "does not number the classes 0, 1, …; give --class-names FILE" in capsys.readouterr().err


def test_a_network_that_diffusers_does_not_have_becomes_no_pipeline(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def variant(*arguments: Any) -> DiT:
        model = model_of(*arguments)
        model.config = replace(model.config, qk_norm=True)  # its weights were refused before, by their names
        return model

    monkeypatch.setattr(exporting, "model_of", variant)
    with pytest.raises(InputError, match=r"has model\.qk_norm=true, and DiTTransformer2DModel has false; export --to"):
        export(imported, tmp_path / "pipeline", "diffusers")


def test_mistakes_are_one_sentence(imported: Path, pipeline_folder: Path, kl: Path, tmp_path: Path) -> None:
    fails = functools.partial(run, check=False)
    (tmp_path / "torn.safetensors").write_bytes(WEIGHTS.read_bytes()[:1000])
    torch.save({"lora_A": torch.zeros(2, 2)}, tmp_path / "lora.pt")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text((pipeline_folder / "model_index.json").read_text())
    for arguments in (
        ["import", tmp_path / "torn.safetensors", "--out", tmp_path / "a"],
        ["import", tmp_path / "lora.pt", "--out", tmp_path / "a"],
        ["import", WEIGHTS, "--autoencoder", kl, "--out", tmp_path / "a"],  # heads that no preset tells
        ["import", broken, "--out", tmp_path / "a"],
        ["import", tmp_path / "nothing.pt", "--out", tmp_path / "a"],
        ["import", WEIGHTS, "--num-heads", 4, "--autoencoder", kl, "--out", imported],
        ["export", imported, "--to", "pt", "--out", tmp_path / "weights"],
        ["export", imported, "--to", "diffusers", "--out", pipeline_folder],
        ["export", tmp_path, "--to", "pt", "--out", tmp_path / "weights.pt"],
    ):
        result = fails(arguments)
        assert result.returncode == 2, (arguments, result.stderr)
        assert len(result.stderr.strip().splitlines()[-1]) > 40
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "a").exists()
