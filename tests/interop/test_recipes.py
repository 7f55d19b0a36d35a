"""LightningDiT's, REPA's and RAE's weights through import, sampling and export, against published outputs."""

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dit_scale import draws
from dit_scale.autoencoder import PCACodec, save_autoencoder
from dit_scale.checkpoint import open_whole, weights_of
from dit_scale.cli import main
from dit_scale.config import Config, DiffusionConfig, config_from
from dit_scale.errors import InputError
from dit_scale.interop import architecture_of, read_weights
from dit_scale.interop.families import family_of
from dit_scale.interop.model_settings import model_settings
from dit_scale.interop.rotations import rotations_of
from dit_scale.models import PRESETS, DiT, Projectors, build_model
from dit_scale.sampling import Sampler, SamplingSettings, sample_latents, sampler_of
from dit_scale.training.initial import load_initial
from tests.parity import GOLDEN, assert_parity, load_json, load_tensors

OPTIONS = {
    "lightning_a": [],
    "lightning_b": ["--time-at-data", "1"],  # no SwiGLU, so names do not tell
    "repa_a": ["--num-heads", "4", "--keep-projectors"],
    "repa_b": ["--num-heads", "2"],
    "ddt_a": [],
}
"""What must be said beside the weights."""
NETWORKS = {
    "lightning_a": {"norm": "rmsnorm", "mlp": "swiglu", "rope": True, "num_heads": 4, "patch_size": 1},
    "lightning_b": {"norm": "rmsnorm", "rope": True, "qk_norm": True, "adaln_shift": False, "num_heads": 1},
    "repa_a": {"depth": 3, "num_heads": 4},
    "repa_b": {"depth": 2, "num_heads": 2},
    "ddt_a": {"depth": 2, "head_depth": 1, "head_hidden_size": 64, "head_num_heads": 4, "time_embedding": "fourier"},
}
ROTATIONS = ("feat_rope", "enc_feat_rope", "dec_feat_rope")
LIGHTNING = {"solver": "euler", "num_sampling_steps": 10}
LIGHTNING_GUIDED = {
    **{"solver": "euler", "num_sampling_steps": 25, "solver_options": {"time_shift": 1 / 0.3}},
    **{"cfg_scale": 4.0, "guidance_channels": 3, "guidance_interval": (0.0, 0.89)},
}
REPA = {"solver": "euler", "num_sampling_steps": 20}
REPA_GUIDED = REPA | {"cfg_scale": 1.8, "guidance_interval": (0.0, 0.7)}
RAE = {  # whose shift is of a base of 64 here, and not of 4096
    **{"solver": "euler", "num_sampling_steps": 25},
    "solver_options": {"time_shift": 6**0.5, "end_time": 0.001},
}
LOOPS: list[tuple[str, str, dict[str, Any]]] = [
    *((f"lightning_{tag}", "euler_points11_shift0.0_nocfg", LIGHTNING) for tag in "ab"),
    *((f"lightning_{tag}", "euler_points26_shift0.3_cfg4_interval0.11", LIGHTNING_GUIDED) for tag in "ab"),
    *((f"repa_{tag}", "euler20_nocfg", REPA) for tag in "ab"),
    *((f"repa_{tag}", "euler20_cfg1p8_interval_0_0p7", REPA_GUIDED) for tag in "ab"),
    ("ddt_a", "euler_points26_nocfg", RAE),  # the guided one is chaotic: tests/diffusion/test_recipes.py
]
"""Published sampling loops in the words of ``dit-scale sample``."""


def weights_file(name: str) -> Path:
    return GOLDEN / "recipes" / f"{name}_weights.safetensors"


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that gives the folder of an autoencoder with so many channels, which needs no hub."""
    root = tmp_path_factory.mktemp("codecs")

    def of(channels: int) -> Path:
        folder = root / str(channels)
        if not folder.is_dir():
            folder.mkdir()
            images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
            save_autoencoder(PCACodec.fit([images.to(torch.uint8)], patch_size=4, channels=channels), folder)
        return folder

    return of


@pytest.fixture(scope="module")
def imported(codec: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the run folder of golden weights."""
    root = tmp_path_factory.mktemp("imported")

    def of(name: str) -> Path:
        out = root / name
        if not out.is_dir():
            channels = load_json(f"recipes/{name}")["config"]["in_channels"]
            given = [*OPTIONS[name], "--autoencoder", str(codec(channels))]
            main(["import", str(weights_file(name)), *given, "--out", str(out)])
        return out

    return of


def sampler(run: Path) -> Sampler:
    return sampler_of(open_whole(run), "cpu")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_network_is_recognised_by_its_names_and_computes_as_published(
    name: str, imported: Callable[[str], Path]
) -> None:
    found = sampler(imported(name))
    assert {key: getattr(found.model.config, key) for key in NETWORKS[name]} == NETWORKS[name]
    is_turned = name.startswith(("repa", "ddt"))
    assert found.config.diffusion == DiffusionConfig(
        name="flow", time_at_data=0 if is_turned else 1, time_shift=None if name == "ddt_a" else 1.0
    )
    io = load_tensors(f"recipes/{name}_io")
    output = found.model(io["x"], io["t"], io["y"])
    assert_parity(f"{name} imported out", output, io["out"], atol=1e-5 * max(1.0, io["out"].abs().max().item()))


@pytest.mark.parametrize(("name", "key", "given"), LOOPS, ids=[f"{name}-{key}" for name, key, _ in LOOPS])
def test_an_imported_run_draws_the_published_samples(
    name: str, key: str, given: dict[str, Any], imported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise is the published one; everything else is as ``dit-scale sample`` does it."""
    found, io = sampler(imported(name)), load_tensors(f"recipes/{name}_io")
    kind = "sample" if name.startswith("repa") else "cfg"
    noise = io["sample_noise" if kind == "sample" else "cfg_x"]
    monkeypatch.setattr(draws, "normal", lambda *_, **__: noise)
    latents, indices = found.latents, torch.arange(len(noise))
    settings = SamplingSettings(**given)
    latent = sample_latents(found.model, found.objective, latents, io[f"{kind}_y"], indices, settings)
    assert_parity(f"{name} imported {key}", latent, io[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_come_back_bit_for_bit(name: str, form: str, imported: Callable[[str], Path], tmp_path: Path) -> None:
    """Also the random table t_embedder.W; tables of rotations are computed, and come back to rounding."""
    path, golden = tmp_path / f"weights.{form}", load_file(weights_file(name))
    keeps = ["--keep-projectors"] if "--keep-projectors" in OPTIONS[name] else []
    main(["export", str(imported(name)), "--to", form, *keeps, "--out", str(path)])
    written = load_file(path) if form == "safetensors" else torch.load(path, weights_only=True)
    expected = {key: value for key, value in golden.items() if keeps or not key.startswith("projectors.")}
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        if key.startswith(ROTATIONS):
            torch.testing.assert_close(written[key], value, rtol=0.0, atol=1e-6)
        else:
            assert written[key].dtype == value.dtype
            assert torch.equal(written[key], value), key


def test_what_was_exported_is_imported_again_and_fine_tuned(imported: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    main(["export", str(imported("ddt_a")), "--to", "pt", "--out", str(path)])
    main(["import", str(path), "--out", str(tmp_path / "run")])
    golden = load_file(weights_file("ddt_a"))
    again = weights_of(open_whole(tmp_path / "run"), "ema")
    assert all(torch.equal(again[name], golden[name]) for name in again)
    model = DiT(**vars(sampler(imported("ddt_a")).model.config))
    load_initial(model, str(path), DiffusionConfig(name="flow", time_at_data=0))
    assert all(torch.equal(value, golden[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrapper", ["LightningDiT", "REPA"])
def test_what_their_trainers_write_is_unwrapped(wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "lightning_a" if wrapper == "LightningDiT" else "repa_a"
    golden = load_file(weights_file(name))
    others = {f"module.{key}": torch.zeros_like(value) for key, value in golden.items()}
    average = {f"module.{key}": value for key, value in golden.items()} if wrapper == "LightningDiT" else golden
    beside: dict[str, Any] = {"config": {"data": {"latent_norm": True}}}
    if wrapper == "REPA":
        beside = {"args": argparse.Namespace(enc_type="dinov2-vit-b", z_dims=[24]), "steps": 400_000}
    torch.save({"model": others, "ema": average, "opt": {"state": {}}} | beside, tmp_path / "last.pt")
    with caplog.at_level(logging.INFO, "dit_scale"):
        main(["import", str(tmp_path / "last.pt"), "--out", str(tmp_path / "run"), *OPTIONS[name]])
    found = weights_of(open_whole(tmp_path / "run"), "ema")
    assert found.keys() == {key for key in golden if not key.startswith(ROTATIONS)}
    assert all(torch.equal(value, golden[key]) for key, value in found.items())
    assert "'ema' is taken and not 'model'" in caplog.text
    assert f"taken as {wrapper}'s (they hold " in caplog.text


def test_repas_first_checkpoints_count_blocks_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    golden = load_file(weights_file("repa_a"))
    later = {"blocks.1.": "decoder_blocks.0.", "blocks.2.": "decoder_blocks.1."}
    names = {key: later.get(key[:9], key[:9]) + key[9:] for key in golden}
    assert "decoder_blocks.1.attn.qkv.weight" in names.values()
    torch.save({"ema": {names[key]: value for key, value in golden.items()}}, tmp_path / "last.pt")
    with caplog.at_level(logging.INFO, "dit_scale"):
        found = read_weights(tmp_path / "last.pt")
    assert found.keys() == golden.keys()
    assert all(torch.equal(value, golden[key]) for key, value in found.items())
    assert "'decoder_blocks' are counted on from 'blocks'" in caplog.text


@pytest.mark.parametrize(
    ("given", "time_at_data"), [([], None), (["--objective", "flow"], 1), (["--time-at-data", "0"], 0)]
)
def test_weights_without_a_sign_are_dits_unless_it_is_said(
    given: list[str],
    time_at_data: int | None,
    codec: Callable[[int], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = {key: value for key, value in load_file(weights_file("repa_a")).items() if "projectors" not in key}
    torch.save(weights, tmp_path / "w.pt")
    others = ["--num-heads", "4", "--autoencoder", str(codec(4))]
    with caplog.at_level(logging.INFO, "dit_scale"):
        main(["import", str(tmp_path / "w.pt"), *others, *given, "--out", str(tmp_path / "run")])
    found = sampler(tmp_path / "run").config.diffusion
    flow = DiffusionConfig(name="flow", time_at_data=0 if time_at_data == 0 else 1)
    assert found == (DiffusionConfig() if time_at_data is None else flow)
    assert ("taken as SiT's" in caplog.text) == (given == ["--objective", "flow"])


def test_projectors_are_dropped_unless_they_are_kept(
    imported: Callable[[str], Path], codec: Callable[[int], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    golden, kept = load_file(weights_file("repa_a")), weights_of(open_whole(imported("repa_a")), "ema")
    assert kept.keys() == golden.keys()
    with caplog.at_level(logging.INFO, "dit_scale"):
        given = ["--num-heads", "4", "--autoencoder", str(codec(4))]
        main(["import", str(weights_file("repa_a")), *given, "--out", str(tmp_path / "run")])
    assert "projectors are dropped" in caplog.text
    dropped = weights_of(open_whole(tmp_path / "run"), "ema")
    assert dropped.keys() == {key for key in golden if not key.startswith("projectors.")}
    config = vars(sampler(tmp_path / "run").model.config)
    model = DiT(**config | {"projectors": Projectors(after_block=2, widths=(24,), width=48)})
    fresh = model.state_dict()["projectors.0.0.weight"].clone()
    diffusion = DiffusionConfig(name="flow", time_at_data=0)
    load_initial(model, str(tmp_path / "run"), diffusion)
    assert torch.equal(model.state_dict()["projectors.0.0.weight"], fresh)
    load_initial(model, str(imported("repa_a")), diffusion)
    assert all(torch.equal(value, golden[key]) for key, value in model.state_dict().items() if key != "pos_embed")


@pytest.mark.parametrize("name", ["LightningDiT-B/1", "LightningDiT-XL/1", "DiT-DH-S", "DiT-DH-XL", "DiT-XL/2"])
def test_a_preset_is_named_where_the_network_is_one(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, latent_size=16, num_classes=1000, in_channels=32)
    weights = model.state_dict() | rotations_of(model)
    architecture = architecture_of(weights, "w.pt")
    config = model_settings(architecture, None, None, has_null=True, origin="w.pt")
    given = {key: value for key, value in vars(config).items() if value is not None}
    assert config.name == name
    assert given.keys() & PRESETS[name].keys() == set()
    family = family_of(weights)
    assert (family and family.name) == {"L": "LightningDiT", "D": "RAE"}.get(name.removeprefix("DiT-")[0])
    without = {key: value for key, value in weights.items() if not key.startswith(ROTATIONS)}
    untold = architecture_of(without, "w.pt")
    assert model_settings(untold, None, model.config.rope, has_null=True, origin="w.pt") == config


def statistics(path: Path, **content: Tensor) -> Path:
    torch.save(content, path)
    return path


def test_latents_are_normalised_by_a_file_of_statistics(
    codec: Callable[[int], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mean, std = torch.randn(1, 8, 1, 1), torch.rand(1, 8, 1, 1) + 0.5
    file = statistics(tmp_path / "latents_stats.pt", mean=mean, std=std)
    for name, given in (("with", ["--autoencoder", str(codec(8))]), ("without", [])):
        arguments = ["import", str(weights_file("lightning_a")), "--latent-statistics", str(file), *given]
        main([*arguments, "--out", str(tmp_path / name)])
    raw = torch.randn(2, 8, 8, 8)
    found = sampler(tmp_path / "with").latents
    torch.testing.assert_close(found.normalise(raw), (raw - mean) / std)
    with pytest.raises(InputError, match=r"imported without an autoencoder.*dit-scale sample --decoder NAME"):
        sampler(tmp_path / "without")
    assert "makes latents of 4 channels and this model takes 8" in caplog.text
    assert "not normalised" not in caplog.text
    decoding = ["--decoder", str(codec(8)), "--num-samples", "2", "--num-sampling-steps", "2"]
    main(["sample", str(tmp_path / "without"), *decoding, "--out", str(tmp_path / "images")])
    assert len(list((tmp_path / "images" / "images").glob("*.png"))) == 2
    assert json.loads((tmp_path / "images" / "protocol.json").read_text())["solver"] == "heun"


def test_a_convention_that_contradicts_is_told(
    imported: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = imported("repa_a")
    model = DiT(**vars(sampler(run).model.config))
    with pytest.raises(InputError, match=r"is told 0 at the data and this run has diffusion\.time_at_data=1"):
        load_initial(model, str(run), DiffusionConfig(name="flow"))
    with caplog.at_level(logging.INFO, "dit_scale"):
        load_initial(model, str(run), DiffusionConfig())  # another objective learns another thing
        load_initial(model, str(weights_file("repa_a")), DiffusionConfig())
        assert not caplog.text
        load_initial(model, str(weights_file("repa_a")), DiffusionConfig(name="flow"))
    assert "look like REPA's, whose network is told 0 at the data, and this run's is told 1" in caplog.text
    assert config_from(Config, open_whole(run).description.config).diffusion.time_at_data == 0


def test_what_a_user_says_of_the_convention_wins(
    codec: Callable[[int], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [*OPTIONS["repa_a"], "--autoencoder", str(codec(4)), "--time-at-data", "1"]
    main(["import", str(weights_file("repa_a")), *options, "--out", str(tmp_path / "run")])
    assert "look like REPA's (they hold projectors" in caplog.text
    assert config_from(Config, open_whole(tmp_path / "run").description.config).diffusion.time_at_data == 1


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "asks for the convention": ("lightning_b", [], "do not say whose they are; give --time-at-data 1"),
    "flow alone does not tell": ("lightning_b", ["--objective", "flow"], "do not say whose they are"),
    "of gaussian": (
        "lightning_b",
        ["--objective", "gaussian", "--time-at-data", "1"],
        "--time-at-data 1 has no effect with --objective gaussian",
    ),
    "schedule": ("repa_a", ["--schedule", "cosine"], "--schedule cosine has no effect with .*of flow matching"),
    "heads": ("repa_a", [], "give --num-heads N"),
    "other heads": ("lightning_a", ["--num-heads", "8"], "--num-heads 8 does not fit .* has 4 attention heads"),
    "no rotations": ("lightning_a", ["--rope", "false"], "--rope false does not fit"),
    "no projectors": ("lightning_a", ["--keep-projectors"], "--keep-projectors has no effect with"),
    "two scales": ("lightning_a", ["--latent-scale", "1", "--latent-statistics", "STATS"], "give one of them"),
    "a position": ("ddt_a", ["--latent-statistics", "RAE"], "hold numbers for each position, .24, 4, 4., as RAE's do"),
    "channels": ("lightning_a", ["--latent-statistics", "STATS"], "the model's latents have 8 channels"),
    "no statistics": ("lightning_a", ["--latent-statistics", "EMPTY"], "hold no tensors 'mean' and 'std'"),
    "a std of 0": ("lightning_a", ["--latent-statistics", "ZERO"], "have a std that is not above 0"),
    "no file": ("lightning_a", ["--latent-statistics", "nowhere.pt"], "nowhere.pt' cannot be read"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(
    mistake: str, codec: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, options, sentence = MISTAKES[mistake]
    files = {
        "STATS": statistics(tmp_path / "four.pt", mean=torch.zeros(1, 4, 1, 1), std=torch.ones(1, 4, 1, 1)),
        "RAE": statistics(tmp_path / "stat.pt", mean=torch.zeros(24, 4, 4), var=torch.ones(24, 4, 4)),
        "EMPTY": statistics(tmp_path / "empty.pt", mean=torch.zeros(8)),
        "ZERO": statistics(tmp_path / "zero.pt", mean=torch.zeros(8), std=torch.zeros(8)),
    }
    given = [str(files.get(option, option)) for option in options]
    channels = load_json(f"recipes/{name}")["config"]["in_channels"]
    with pytest.raises(SystemExit) as stopped:
        arguments = [*given, "--autoencoder", str(codec(channels)), "--out", str(tmp_path / "run")]
        main(["import", str(weights_file(name)), *arguments])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert last.startswith("dit-scale import: ")
    assert re.search(sentence, last), last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["rotations", "no rotations", "head as wide", "other name", "positions"])
def test_weights_that_are_not_quite_theirs_are_refused(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(weights_file("ddt_a"))
    if change == "rotations":
        weights["enc_feat_rope.freqs_cos"] = weights["enc_feat_rope.freqs_cos"].flip(0)
    elif change == "no rotations":
        weights = {name: value for name, value in weights.items() if not name.startswith(ROTATIONS)}
    elif change == "head as wide":
        weights["x_embedder.proj.weight"] = weights["s_embedder.proj.weight"]
    elif change == "other name":
        weights["other_blocks.0.attn.qkv.weight"] = torch.zeros(2, 2)
    else:
        weights["pos_embed"] += 1.0
    sentence = {
        "rotations": "have a enc_feat_rope.freqs_cos that is not LightningDiT's table of rotations; give a published",
        "no rotations": "holds no table of rotations (feat_rope.freqs_cos)",
        "head as wide": "have a head whose blocks are 48 wide like all others",
        "other name": "other_blocks.0.attn.qkv.weight is (2, 2) there and absent here",
        "positions": "have a pos_embed that is not DiT's table",
    }[change]
    torch.save(weights, tmp_path / "w.pt")
    given = ["--num-heads", "4"] if change == "no rotations" else []
    with pytest.raises(SystemExit) as stopped:
        main(["import", str(tmp_path / "w.pt"), *given, "--latent-scale", "1", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
