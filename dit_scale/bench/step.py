"""`dit-scale bench step`: a whole training step of ours beside another code's, on the same weights and batch."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_scale.bench.contender import Trained, compare, contend
from dit_scale.bench.loop import CLASSES, Loop, PlainLoop
from dit_scale.bench.measure import Spread, what_seconds_are
from dit_scale.bench.peer import PeerLoop, Peers
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.config import Config, EngineConfig, RoutingConfig
from dit_scale.distributed.runtime import World, device_of, process_group, set_threads
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, build_model
from dit_scale.planning.flops import peak_flops, training_flops_per_image
from dit_scale.recipe import route_of
from dit_scale.training.routing import token_draws

OURS, WITHOUT_DEEPSPEED, WITHOUT_ROUTING = "dit_scale", "without DeepSpeed", "without routing"
_PACKAGES = ("dit_scale", "torch", "deepspeed", "xformers", "torchao", "numpy")


def random_model(name: str, latents: LatentSpec, device: str = "cpu", **settings: Any) -> DiT:
    """Return a model whose every weight counts: a new one's gates are all closed."""
    torch.manual_seed(0)
    with torch.device(device):
        shape = {"latent_size": latents.size, "in_channels": latents.channels}
        model = build_model(name, num_classes=CLASSES, **shape, **settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def random_model_of(config: Config, latents: LatentSpec, device: str) -> DiT:
    """Return the network of a configuration; what is the same with and without routing has the same weights."""
    settings = asdict(config.model) | {"route": route_of(config.routing)}
    return random_model(settings.pop("name"), latents, device, **settings)


def bench_step(
    config: Config,
    image_size: int,
    batch_size: int,
    engine: EngineConfig,
    peers: Peers,
    without_deepspeed: bool,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Take steps of each in turn, ``rounds`` times; print and write what they took, in parts and in all.

    Of the configuration model and routing count; where tokens are routed, the same network without comes, too.
    """
    model_name, unrouted = config.model.name, replace(config, routing=RoutingConfig())
    report = begin_report("step", _PACKAGES, json_file)
    world, device = World(), device_of(World())
    report["threads"] = set_threads(world)
    latents = LatentSpec(4, image_size // 8)
    label = (torch.arange(batch_size) % CLASSES).to(device)
    latent = torch.randn(batch_size, *latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
    model = random_model_of(config, latents, device)
    flops, num_parameters = training_flops_per_image(model), sum(value.numel() for value in model.parameters())
    weights = {name: value.cpu() for name, value in model.state_dict().items() if not name.startswith("route.")}
    expected = _output(model, latent[:2], label[:2])
    differences: dict[str, float] = {}

    def ours(config: Config) -> Trained:
        own = random_model_of(config, latents, device)
        return Loop(own, latents, engine, batch_size, batch_size, world, device, token_draws(config, own))

    def plain(loop: Loop) -> Trained:
        twin = random_model_of(config, latents, device)
        return PlainLoop(twin, loop.loss_function, loop.batch, engine, device)

    def other(path: Path) -> Trained:
        peer = peers.build(path, model_name, latents, weights, device)
        found = _output(peer.ema, latent[:2], label[:2])
        differences[peer.name] = ((found - expected).abs().max() / expected.abs().max()).item()
        return PeerLoop(peer, latent, label)

    del model
    with process_group(world, device):
        contenders = {OURS: contend(partial(ours, config), keeps_memory=True)}
        loop = contenders[OURS].loop
        assert isinstance(loop, Loop)
        if config.routing.ratio:
            contenders[WITHOUT_ROUTING] = contend(partial(ours, unrouted), keeps_memory=True)
        if without_deepspeed:
            contenders[WITHOUT_DEEPSPEED] = contend(partial(plain, loop), keeps_memory=True)
        for path in peers.paths:  # with the allocator as their own training has it
            contenders[path.resolve().name] = contend(partial(other, path), keeps_memory=False)
        figures = compare(contenders, rounds, device)
    peak = peak_flops(device, engine.precision)
    report |= {
        "model": model_name,
        "settings": {"model": asdict(config.model), "routing": asdict(config.routing)},
        "parameters": num_parameters,
        "batch_size": batch_size,
        "image_size": image_size,
        "engine": asdict(engine),
        "attention": loop.engine.module.attention,
        "peer_precision": peers.precision,
        "seconds_are": what_seconds_are(device),
        **figures,
        "mfu": batch_size / figures["seconds"][OURS]["median"] * flops / peak if peak else None,
        "output_difference": differences,
    }
    _show(report, batch_size)
    write_report(report, json_file)


@torch.no_grad()
def _output(network: Callable[..., Tensor], latent: Tensor, label: Tensor) -> Tensor:
    """Return what a network makes of two latents: are its weights the same?"""
    return network(latent, torch.tensor([3, 700], device=latent.device), label)


def _show(report: dict[str, Any], batch_size: int) -> None:
    show(report)
    engine = report["engine"]
    engine_words = ", compiled" if engine["compile"] else ""
    engine_words += ", fp8" if engine["fp8"] else ""
    print(
        f"{report['model']} at {report['image_size']} px, batch {batch_size}, {engine['precision']}"
        f"{engine_words} (peers eager in {report['peer_precision']}), "
        f"{report['threads']} threads; attention {report['attention']}; {report['seconds_are']}"
    )
    names = list(report["seconds"])
    rows = [["a step, s", *(str(Spread(**report["seconds"][name])) for name in names)]]
    rows.append(["images/s", *(f"{batch_size / report['seconds'][name]['median']:.3g}" for name in names)])
    for part in report["parts"][OURS]:
        rows.append([part, *(str(Spread(**report["parts"][name][part])) for name in names)])
    for kind in report["kernels"][OURS]:
        rows.append([f"of it {kind}", *(f"{report['kernels'][name][kind]:.1%}" for name in names)])
    if "memory_bytes" in report:
        for kind in ("held", "peak"):
            rows.append([f"{kind} memory", *(f"{report['memory_bytes'][name][kind] / 1e9:.2f} GB" for name in names)])
        rows.append(["the host waits", *(str(report["host_syncs"][name]) for name in names)])
        rows.append(["the GPU computes", *(f"{report['gpu_busy'][name]:.0%}" for name in names)])
    show_table("median (least-most)", ["", *names], rows)
    if (routing := report["settings"]["routing"])["ratio"]:
        print(f"{OURS} routes: {', '.join(f'{name} {value}' for name, value in routing.items())}")
    for name, speedup in report["speedup"].items():
        difference = report["output_difference"].get(name)
        same = "" if difference is None else f"; outputs differ by {difference:.1e}"
        print(f"{OURS} takes a step {Spread(**speedup)} times as fast as {name}{same}")
    if report["mfu"] is not None:
        print(f"MFU {report['mfu']:.1%}")
