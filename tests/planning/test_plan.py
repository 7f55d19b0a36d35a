"""`dit-scale plan`: arithmetic held against counts and real runs; larger presets that fit where their configs say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dit_scale.cli import main
from dit_scale.config import Config, load_config
from dit_scale.latents import LatentSpec
from dit_scale.models import Route, build_model
from dit_scale.planning.chart import scalings
from dit_scale.planning.choices import model_on_meta
from dit_scale.planning.cluster import GPUS, Cluster
from dit_scale.planning.flops import attention_flops_per_image, forward_multiply_adds, training_flops_per_image
from dit_scale.planning.search import plan_of, search
from tests.end_to_end.conftest import images, shards  # noqa: F401 (fixtures)
from tests.launch import run

LARGE = {"dit-1.5b-2-256": 1.55e9, "dit-3b-2-256": 3.04e9, "dit-7b-2-256": 7.17e9}


def planned(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    main(["plan", *arguments, "--json", str(out)])
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DiT-S/2", {}),
        ("DiT-S/8", {}),
        ("LightningDiT-B/1", {"depth": 3, "patch_size": 4}),
        ("DiT-DH-S", {"depth": 3, "head_depth": 3, "head_hidden_size": 512, "patch_size": 4}),
    ],
)
def test_flops_are_pytorchs_count_to_the_last_one(name: str, changes: dict[str, Any]) -> None:
    model = build_model(name, latent_size=32, num_classes=10, **changes)
    latent, time, label = torch.randn(1, 4, 32, 32), torch.tensor([3]), torch.tensor([5])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        output = model(latent, time, label)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert forward.get_total_flops() == 2 * forward_multiply_adds(model)
    assert forward.get_total_flops() + backward.get_total_flops() == training_flops_per_image(model)
    tokens = model.grid_side**2  # QK' and weights V, each with two gradients: six products of two a multiply-add
    widths = sum(stack.depth * stack.hidden_size for stack in model.config.stacks)
    assert attention_flops_per_image(model) == 12 * tokens**2 * widths


def test_an_early_layer_is_counted() -> None:
    """A norm's two vectors and a linear layer of the patches: two products, forward and, twice that, backward."""
    with torch.device("meta"):
        without, early = (build_model("DiT-S/8", latent_size=32, num_classes=10, early_block=block) for block in (0, 8))
    width, numbers = 384, 8 * 8 * 8
    multiply_adds = 2 * width * width + early.grid_side**2 * width * numbers
    assert forward_multiply_adds(early) - forward_multiply_adds(without) == multiply_adds
    assert training_flops_per_image(early) - training_flops_per_image(without) == 6 * multiply_adds


@pytest.mark.parametrize("fill", ["entered", "learnt"])
def test_flops_of_a_routed_step_are_pytorchs_count_to_the_last_one(fill: str) -> None:
    model = build_model("DiT-S/8", latent_size=32, num_classes=10, route=Route(3, 8, fill, 0.75))  # type: ignore[arg-type]
    inputs = torch.randn(1, 4, 32, 32), torch.tensor([3]), torch.tensor([5])
    for kept in (torch.tensor([[1, 4, 7, 9]]), None):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
            output = model(*inputs, kept_tokens=kept)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
            output.sum().backward()
        counted = forward.get_total_flops() + backward.get_total_flops()
        assert counted == training_flops_per_image(model, all_tokens=kept is None)


def test_a_plan_shows_what_routing_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["dit-xl-2-256", "--gpus", "8", "--gpu", "h200", "--image-size", "256"]
    routing = ["routing.ratio=0.75", "train.steps=1000"]
    (dense,) = planned(tmp_path, *asked, "train.steps=1000")["plans"]
    (routed,) = planned(tmp_path, *asked, *routing)["plans"]
    assert "routing: 75% of the tokens go around blocks 3 to 26; with all tokens" in capsys.readouterr().out
    (both,) = planned(tmp_path, *asked, *routing, "routing.until_step=900")["plans"]
    products = [plan["prediction"]["step"]["products"] for plan in (routed, dense)]
    assert products[0] < 0.5 * products[1]
    assert routed["memory"]["activations"] < 0.5 * dense["memory"]["activations"]
    assert both["memory"] == dense["memory"]  # the last steps take most
    expected = 0.9 * routed["run_seconds"] + 0.1 * dense["run_seconds"]
    assert both["run_seconds"] == pytest.approx(expected)


PAPER = {"DiT-S/8": 0.36, "DiT-B/4": 5.56, "DiT-L/2": 80.71, "DiT-XL/2": 118.64}


@pytest.mark.parametrize(("name", "gflops"), PAPER.items())
def test_flops_are_those_of_the_papers_table(name: str, gflops: float) -> None:
    """Gflops of arXiv 2212.09748, table 4, which are multiply-adds of a forward pass."""
    with torch.device("meta"):
        model = build_model(name, latent_size=32, num_classes=1000)
    assert forward_multiply_adds(model) / 1e9 == pytest.approx(gflops, abs=0.02)


@pytest.mark.parametrize(("name", "parameters"), LARGE.items())
def test_larger_presets_fit_on_8_to_512_gpus(name: str, parameters: float) -> None:
    config = load_config(Config, name, ["run_dir=x", "data.path=x"])
    model = model_on_meta(config, LatentSpec(4, 32), 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.01)
    for count in (8, 16, 32, 64, 128, 256, 512):
        cluster = Cluster(GPUS["h100"], count)
        plan = plan_of(config, model, cluster)
        assert plan.fits(cluster), (count, plan.memory)
        assert 0.0 < plan.prediction.mfu < 1.0


@pytest.mark.parametrize("name", LARGE)
def test_larger_presets_train_scaled_down_with_everything_sharded(
    name: str,
    shards: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = load_config(Config, name, ["run_dir=x", "data.path=x"])
    heads = {"DiT-1.5B/2": 24, "DiT-3B/2": 32, "DiT-7B/2": 24}[config.model.name]
    small = [f"model.hidden_size={4 * heads}", "model.depth=3", "train.global_batch_size=4", "train.steps=3"]
    sharded = ["engine.zero_stage=3", "engine.offload_optimizer=true", "engine.compile=false"]
    place = [f"run_dir={tmp_path / 'run'}", f"data.path={shards}", "preview.every_steps=0", "wandb.mode=disabled"]
    run(["train", name, *small, *sharded, *place], ranks=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(0.0 < line["loss"] < 10.0 for line in lines)


def test_a_plan_tells_memory_communication_time_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "scaling.png"
    report = planned(
        tmp_path, "dit-xl-2-256", "--gpus", "8", "--gpu", "h200", "--image-size", "256", "--chart", str(chart)
    )
    (plan,) = report["plans"]
    assert report["parameters"] == 675_129_632
    states = sum(plan["memory"][part] for part in ("parameters", "master", "optimizer_state", "ema"))
    assert states == pytest.approx((2 + 16 / 8) * 675e6, rel=0.01)  # bf16 whole; the rest over eight ranks
    sent = {collective["kind"]: collective["num_bytes"] for collective in plan["collectives"]}
    assert sent["reduce"] == 2 * 674_834_720  # bf16 gradients of all that is trained
    assert chart.stat().st_size > 10_000
    output = capsys.readouterr().out
    for words in ("711.7 GFLOP", "7,000,000 steps take", "reduce of gradients", "a save takes"):
        assert words in output, words


def test_a_search_ranks_what_fits(tmp_path: Path) -> None:
    report = planned(tmp_path, "dit-7b-2-256", "--gpus", "8", "--image-size", "256", "--search")
    rates = [plan["prediction"]["images_per_second"] for plan in report["plans"]]
    assert len(rates) > 10
    assert rates == sorted(rates, reverse=True)
    assert all(plan["fits"] for plan in report["plans"])


def test_the_optimizer_is_offloaded_only_where_nothing_else_fits() -> None:
    config = load_config(Config, "dit-7b-2-256", ["run_dir=x", "data.path=x", "train.global_batch_size=4"])
    model = model_on_meta(config, LatentSpec(4, 32), 1000)
    found = search(config, model, Cluster(GPUS["h100"], 1))
    assert found
    assert all(plan.config.engine.offload_optimizer for plan in found)


def test_a_plan_follows_the_optimizer_and_the_kernels(tmp_path: Path) -> None:
    where = ("dit-s-2-256", "--gpus", "8", "--image-size", "256", "train.micro_batch_size_per_gpu=4")
    whole = ("engine.zero_stage=0", "engine.precision=fp32")
    changes = ([], ["train.optimizer=muon"], ["engine.kernels=off"], ["model.attention=matmul"])
    plans = [planned(tmp_path, *where, *whole, *change)["plans"][0] for change in changes]
    usual, muon, off, matmul = (plan["memory"] for plan in plans)
    assert muon["optimizer_state"] < 0.7 * usual["optimizer_state"]
    assert muon["update_workspace"] > 0
    pairs = 4 * 4 * 12 * 6 * 256**2  # images, bytes, blocks, heads, tokens by tokens
    for more in (off, matmul):
        assert more["activations"] - usual["activations"] > 0.9 * pairs
    saves = [plan["prediction"]["save_seconds"] for plan in plans]
    assert saves[1] < saves[0]


def test_a_plan_counts_what_whole_matrices_take(tmp_path: Path) -> None:
    where = ("dit-s-2-256", "--gpus", "8", "--image-size", "256")
    usual, muon = (planned(tmp_path, *where, f"train.optimizer={name}")["plans"][0] for name in ("adamw", "muon"))
    kinds = [[collective["kind"] for collective in plan["collectives"]] for plan in (usual, muon)]
    assert kinds[1] == [*kinds[0], "send"]
    products = 410 * 384**3 * 12 / 8 / 989e12 / 0.71  # of 18 matrices' worth of width by width in each of 12 blocks
    assert muon["prediction"]["step"]["update"] - usual["prediction"]["step"]["update"] > products


def test_a_search_tries_no_stage_that_training_refuses() -> None:
    settings = ["run_dir=x", "data.path=x", "train.global_batch_size=64"]
    found = {}
    for name, change in (
        ("bf16", ["engine.precision=bf16"]),
        ("fp32", ["engine.precision=fp32"]),
        ("muon", ["engine.precision=fp32", "engine.zero_stage=0", "train.optimizer=muon"]),
    ):
        config = load_config(Config, "dit-s-2-256", [*settings, *change])
        plans = search(config, model_on_meta(config, LatentSpec(4, 32), 1000), Cluster(GPUS["h100"], 8))
        found[name] = {plan.config.engine.zero_stage for plan in plans}
    assert found == {"bf16": {1, 2, 3}, "fp32": {0, 1, 2, 3}, "muon": {0, 1, 2}}


def test_scaling_stops_where_a_gpu_has_no_image_left() -> None:
    config = load_config(Config, "dit-s-2-256", ["run_dir=x", "data.path=x", "train.global_batch_size=64"])
    model = model_on_meta(config, LatentSpec(4, 32), 1000)
    cluster = Cluster(GPUS["h100"], 8)
    weak, strong = scalings(plan_of(config, model, cluster), model, cluster, searching=False)
    assert (weak.gpus()[-1], strong.gpus()[-1]) == (4096, 64)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dit-xl-2-256", "--gpus", "8"], "or give --image-size, such as 256, to plan without data"),
        (
            ["dit-xl-2-256", "--gpus", "8", "data.path=/nowhere"],
            "or give --image-size, such as 256, to plan without data",
        ),
        (["dit-xl-2-256", "--gpus", "48", "--image-size", "256"], "does not divide over 48 ranks"),
        (["dit-xl-2-256", "--gpus", "8", "--image-size", "100"], "--image-size 100 is not a multiple of 8"),
        (["dit-xl-2-256", "--gpus", "8", "--gpu", "h20", "--image-size", "256"], "did you mean 'h200'"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_what_does_not_fit_is_said_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "dit-7b-2-256", "--gpus", "1", "--image-size", "256", "train.global_batch_size=1024"])
    assert stopped.value.code == 2
    assert "DOES NOT FIT" in capsys.readouterr().out
