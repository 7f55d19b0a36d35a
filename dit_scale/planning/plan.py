"""`dit-scale plan`: what a configuration will take and give on a cluster, before anything is bought or queued."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dit_scale.config import Config
from dit_scale.errors import Failure, InputError
from dit_scale.files import write_json
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.optim import needs_whole
from dit_scale.parameters import num_parameters
from dit_scale.planning.chart import draw, scalings
from dit_scale.planning.choices import gigabytes, in_words, model_on_meta, outline, plural, smaller_choices
from dit_scale.planning.cluster import Cluster
from dit_scale.planning.communication import collectives_of
from dit_scale.planning.flops import training_flops_per_image
from dit_scale.planning.memory import estimate_memory
from dit_scale.planning.search import Plan, plan_of, search
from dit_scale.zero.engine import check_engine

__all__ = ["Request", "plan"]

_MOST_ROWS = 10
_PARTS = (
    ("parameters", "parameters"),
    ("gathered_parameters", "parameters of other ranks, gathered"),
    ("gradients", "gradients"),
    ("buckets", "buckets that gradients are reduced in"),
    ("master", "fp32 master weights"),
    ("optimizer_state", "the optimizer's state"),
    ("ema", "EMA"),
    ("encoders", "frozen encoders of alignment"),
    ("activations", "activations kept for backward"),
    ("backward_workspace", "backward's widest moment"),
    ("encoder_workspace", "an encoder's widest moment (not beside backward's)"),
    ("update_workspace", "fp32 gradients and copies in the update (not beside activations)"),
)


@dataclass(frozen=True)
class Request:
    """What to plan beside the configuration and the cluster."""

    image_size: int | None = None
    """In pixels, with 8 a latent pixel; None takes the latents from data.path."""
    channels: int = 4
    num_classes: int = 1000
    price: float = 2.0
    """Of a GPU for an hour, in whatever currency."""
    search: bool = False
    chart: Path | None = None
    json_file: Path | None = None


def plan(config: Config, cluster: Cluster, request: Request) -> bool:
    """Print what the configuration takes, or with ``search`` what fits; return whether anything fits."""
    check_engine(config.engine, config.train)
    model = _model(config, request)
    plans = search(config, model, cluster) if request.search else [plan_of(config, model, cluster)]
    title = f"{config.model.name} on {cluster.num_gpus} x {cluster.gpu.name}"
    if not plans:
        why = "not even ZeRO 3 with the optimizer offloaded; take more GPUs"
        if needs_whole(config.train):
            why = f"and train.optimizer={config.train.optimizer} allows ZeRO 0 to 2 alone; give train.optimizer=adamw"
        raise InputError(f"{title}: nothing fits, {why}")
    best = plans[0]
    _show_model(model, best, title)
    if request.search:
        _show_found(plans, cluster)
    _show(best, model, cluster, request)
    if request.chart is not None:
        draw(
            scalings(best, model, cluster, request.search),
            f"{title.replace(f'{cluster.num_gpus} x ', '')}, predicted",
            request.chart,
        )
        print(f"scaling from 1 to 4096 GPUs drawn in {request.chart}")
    if request.json_file is not None:
        write_json(request.json_file, _as_json(plans, model, cluster))
    return best.fits(cluster)


def _model(config: Config, request: Request) -> DiT:
    if request.image_size is not None:
        if request.image_size % 8:
            raise InputError(f"--image-size {request.image_size} is not a multiple of 8, a latent pixel's side")
        latents = LatentSpec(request.channels, request.image_size // 8)
        return model_on_meta(config, latents, request.num_classes)
    try:
        return outline(config)
    except (InputError, Failure, OSError) as error:
        raise InputError(f"{error}; or give --image-size, such as 256, to plan without data") from error


def _show_model(model: DiT, best: Plan, title: str) -> None:
    total = num_parameters(model)
    tokens = model.grid_side**2
    print(
        f"{title}: {total / 1e6:,.1f}M parameters, {tokens} tokens an image, "
        f"{training_flops_per_image(model) / 1e9:,.1f} GFLOP an image in training"
    )
    if frozen := best.setup.frozen.parameters:
        projectors = num_parameters(model.projectors)
        print(
            f"alignment: projectors of {projectors / 1e6:,.1f}M parameters (among these), frozen encoders of "
            f"{frozen / 1e6:,.1f}M with {best.setup.frozen.flops / 1e9:,.1f} GFLOP an image"
        )


def _show_found(plans: list[Plan], cluster: Cluster) -> None:
    table = Table(
        title=f"{plural(len(plans), 'setup')} of those tried fit, the fastest first",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("images/s", "MFU", "step", "memory", "settings"):
        table.add_column(column, justify="left" if column == "settings" else "right", overflow="fold")
    for one in plans[:_MOST_ROWS]:
        prediction = one.prediction
        table.add_row(
            f"{prediction.images_per_second:,.0f}",
            f"{prediction.mfu:.0%}",
            f"{1e3 * prediction.step.seconds:,.0f} ms",
            gigabytes(one.memory.peak),
            one.overrides(),
        )
    _print(table)


def _show(one: Plan, model: DiT, cluster: Cluster, request: Request) -> None:
    """Print memory, communication, time and cost of one plan."""
    print(f"with {one.overrides()}, global batch {one.config.train.global_batch_size}:")
    memory = Table("memory a GPU", "", box=box.SIMPLE_HEAD, pad_edge=False)
    memory.columns[1].justify = "right"
    for name, words in _PARTS:
        if size := getattr(one.memory, name):
            memory.add_row(words, gigabytes(size))
    memory.add_row("most at any moment", f"{gigabytes(one.memory.peak)} of {gigabytes(cluster.gpu.memory_bytes)}")
    _print(memory)
    _print(_time_table(one, model, cluster))
    train, prediction = one.config.train, one.prediction
    seconds = one.seconds
    hours = seconds * cluster.num_gpus / 3600
    print(
        f"{prediction.images_per_second:,.0f} images/s ({prediction.images_per_second / cluster.num_gpus:,.0f} a GPU), "
        f"MFU {prediction.mfu:.1%}; {train.steps:,} steps take {seconds / 86400:,.1f} days and {hours:,.0f} GPU hours, "
        f"which cost {hours * request.price:,.0f} at {request.price:g} an hour; a save takes "
        f"{prediction.save_seconds:.1f} s behind the steps"
    )
    if one.with_all_tokens is not None:
        print(_routing_in_words(one, model))
    if not one.fits(cluster):
        limit = 0.9 * cluster.gpu.memory_bytes
        choices = in_words(smaller_choices(one.config, model, one.setup, limit), limit)
        print(f"DOES NOT FIT: {gigabytes(one.memory.peak)} where {gigabytes(limit)} can be used; give {choices}")


def _routing_in_words(one: Plan, model: DiT) -> str:
    """Say what routing saves of a step."""
    routing, blocks, dense = one.config.routing, model.config.routed_blocks, one.with_all_tokens
    assert dense is not None
    routed, everything = (estimate_memory(model, replace(one.setup, all_tokens=whole)) for whole in (False, True))
    flops = training_flops_per_image(model, all_tokens=True) / training_flops_per_image(model)
    seconds = dense.step.seconds / one.prediction.step.seconds
    until = f" up to step {routing.until_step:,}; memory is that of the steps after it" if routing.until_step else ""
    return (
        f"routing: {routing.ratio:.0%} of the tokens go around blocks {blocks.start} to {blocks.stop - 1}{until}; with "
        f"all tokens a step takes {1e3 * dense.step.seconds:,.1f} ms, {seconds:.2f} times as long ({flops:.2f} times "
        f"the FLOPs), and activations {gigabytes(everything.activations)} instead of {gigabytes(routed.activations)}"
    )


def _time_table(one: Plan, model: DiT, cluster: Cluster) -> Table:
    step = one.prediction.step
    table = Table("a step, predicted", "", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[1].justify = "right"
    rows = [
        ("matrix products", step.products),
        ("all else on activations", step.elementwise),
        ("optimizer and EMA", step.update),
        ("communication that nothing hides", step.exposed),
        ("waiting for the host", step.host),
    ]
    for name, seconds in rows:
        table.add_row(name, f"{1e3 * seconds:,.1f} ms")
    table.add_row("in all", f"{1e3 * step.seconds:,.1f} ms")
    for collective in collectives_of(model, one.setup) if cluster.num_gpus > 1 else []:
        table.add_row(
            f"{collective.kind} of {collective.what}, hidden behind {collective.hides_behind}",
            f"{gigabytes(collective.sent_bytes(cluster.num_gpus))} sent",
        )
    return table


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def _as_json(plans: list[Plan], model: DiT, cluster: Cluster) -> dict[str, Any]:
    return {
        "parameters": num_parameters(model),
        "training_flops_per_image": training_flops_per_image(model),
        "encoder_flops_per_image": plans[0].setup.frozen.flops,
        "cluster": asdict(cluster),
        "plans": [
            {
                "overrides": one.overrides(),
                "fits": one.fits(cluster),
                "memory": asdict(one.memory) | {"peak": one.memory.peak},
                "prediction": asdict(one.prediction) | {"step_seconds": one.prediction.step.seconds},
                "run_seconds": one.seconds,
                "collectives": [asdict(each) for each in collectives_of(model, one.setup)],
            }
            for one in plans
        ],
    }
