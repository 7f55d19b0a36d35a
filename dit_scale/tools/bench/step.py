"""`dit-scale bench step`: a whole training step of ours beside another code's, on the same weights and batch."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World, device_of, keep_freed_memory, process_group, set_threads
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, build_model
from dit_scale.models.flops import peak_flops, training_flops_per_image
from dit_scale.tools.bench.loop import CLASSES, Loop, PlainLoop
from dit_scale.tools.bench.measure import Spread, in_rounds
from dit_scale.tools.bench.peer import Peer
from dit_scale.tools.bench.profile import kernel_classes
from dit_scale.tools.bench.report import check_target, origin_of, show, show_table, write_report

OURS, WITHOUT_DEEPSPEED = "dit_scale", "without DeepSpeed"
_PACKAGES = ("dit_scale", "torch", "deepspeed", "xformers", "numpy")
Steps = Mapping[str, Callable[[], object]]


def random_model(name: str, latents: LatentSpec) -> DiT:
    """Return a model whose every weight counts: a new one's gates are all closed."""
    torch.manual_seed(0)
    model = build_model(name, latent_size=latents.size, in_channels=latents.channels, num_classes=CLASSES)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def bench_step(
    model_name: str,
    image_size: int,
    batch_size: int,
    engine: EngineConfig,
    peers: list[Path],
    peer_precision: str,
    without_deepspeed: bool,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Take steps of each in turn, ``rounds`` times; print and write what they took, in parts and in all."""
    check_target(json_file)
    report = origin_of("step", _PACKAGES)
    world, device = World(), device_of(World())
    report["threads"] = set_threads(world)
    latents = LatentSpec(4, image_size // 8)
    model = random_model(model_name, latents)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    flops, num_parameters = training_flops_per_image(model), sum(value.numel() for value in weights.values())
    label = (torch.arange(batch_size) % CLASSES).to(device)
    latent = torch.randn(batch_size, *latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
    others = [Peer(path, model_name, latents.size, CLASSES, weights, device, peer_precision) for path in peers]
    differences = {peer.name: _difference(model, peer, latent[:2], label[:2]) for peer in others}
    with process_group(world, device):
        loop = Loop(model, latents, engine, batch_size, batch_size, world, device)
        steps: dict[str, Callable[[], object]] = {OURS: loop.step}
        parts: dict[str, Steps] = {OURS: loop.parts()}
        if without_deepspeed:
            twin = random_model(model_name, latents)
            plain = PlainLoop(twin, loop.problem, loop.batch, engine, device)
            steps[WITHOUT_DEEPSPEED], parts[WITHOUT_DEEPSPEED] = plain.step, plain.parts()
        for peer in others:
            steps[peer.name] = partial(peer.step, latent, label)
            parts[peer.name] = peer.parts(latent, label)
        if device == "cpu":  # each with the allocator as its training has it
            own = (OURS, WITHOUT_DEEPSPEED)
            steps = {name: _with_memory(step, name in own) for name, step in steps.items()}
            parts = {
                name: {part: _with_memory(action, name in own) for part, action in actions.items()}
                for name, actions in parts.items()
            }
        for step in (*steps.values(), *steps.values()):  # compiled, and every buffer made
            step()
        on_gpu = device.startswith("cuda")
        memory = {name: _peak_memory(step) for name, step in steps.items()} if on_gpu else {}
        syncs = {name: _host_syncs(step) for name, step in steps.items()} if on_gpu else {}
        # A step of each ahead of the one that counts: the memory that the one before gave back is taken again.
        costs = in_rounds({name: _synchronised(step) for name, step in steps.items()}, rounds, before=steps)
        by_part = _parts_in_rounds(parts, rounds)
        kernels = {name: kernel_classes(step, device) for name, step in steps.items()}
    seconds = {
        name: [cost.wall_seconds if on_gpu else cost.cpu_seconds for cost in found] for name, found in costs.items()
    }
    peak = peak_flops(device, engine.precision)
    rate = batch_size / Spread.of(seconds[OURS]).median
    report |= {
        "model": model_name,
        "parameters": num_parameters,
        "batch_size": batch_size,
        "image_size": image_size,
        "engine": asdict(engine),
        "peer_precision": peer_precision,
        "seconds_are": "GPU seconds, synchronised" if on_gpu else "CPU seconds of all threads",
        "seconds": {name: asdict(Spread.of(found)) for name, found in seconds.items()},
        "wall_seconds": {name: asdict(Spread.of([c.wall_seconds for c in found])) for name, found in costs.items()},
        "speedup": {
            name: asdict(Spread.of([b / a for a, b in zip(seconds[OURS], other, strict=True)]))
            for name, other in seconds.items()
            if name != OURS
        },
        "parts": by_part,
        "kernels": kernels,
        "peak_memory_bytes": memory,
        "host_syncs": syncs,
        "mfu": rate * flops / peak if peak else None,
        "output_difference": differences,
    }
    _show(report, batch_size)
    write_report(report, json_file)


@torch.no_grad()
def _difference(model: DiT, peer: Peer, latent: Tensor, label: Tensor) -> float:
    """Return the largest difference of both networks' outputs, relative to the largest output: the same weights?"""
    time = torch.tensor([3, 700], device=latent.device)
    ours = model.to(latent.device)(latent, time, label)
    theirs = peer.ema(latent, time, label)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _synchronised(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _with_memory(step: Callable[[], object], keep: bool) -> Callable[[], object]:
    def run() -> None:
        keep_freed_memory(keep)
        step()

    return run


def _peak_memory(step: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _host_syncs(step: Callable[[], object]) -> int:
    """Return how often the host waits for the GPU in a step, as PyTorch warns of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _parts_in_rounds(parts: Mapping[str, Steps], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the seconds of each part of each one's step; parts follow each other as in a step."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    found: dict[str, dict[str, list[float]]] = {name: {part: [] for part in steps} for name, steps in parts.items()}
    for _ in range(rounds):
        for name, steps in parts.items():
            for action in steps.values():
                action()
            for part, action in steps.items():
                started = clock()
                _synchronised(action)()
                found[name][part].append(clock() - started)
    return {name: {part: asdict(Spread.of(values)) for part, values in own.items()} for name, own in found.items()}


def _show(report: dict[str, Any], batch_size: int) -> None:
    show(report)
    engine = report["engine"]
    print(
        f"{report['model']} at {report['image_size']} px, batch {batch_size}, {engine['precision']}"
        f"{', compiled' if engine['compile'] else ''} (peers eager in {report['peer_precision']}), "
        f"{report['threads']} threads; {report['seconds_are']}"
    )
    names = list(report["seconds"])
    rows = [["a step, s", *(str(Spread(**report["seconds"][name])) for name in names)]]
    rows.append(["images/s", *(f"{batch_size / report['seconds'][name]['median']:.3g}" for name in names)])
    for part in report["parts"][OURS]:
        rows.append([part, *(str(Spread(**report["parts"][name][part])) for name in names)])
    for kind in report["kernels"][OURS]:
        rows.append([f"of it {kind}", *(f"{report['kernels'][name][kind]:.1%}" for name in names)])
    if report["peak_memory_bytes"]:
        rows.append(["peak memory", *(f"{report['peak_memory_bytes'][name] / 1e9:.2f} GB" for name in names)])
        rows.append(["the host waits", *(str(report["host_syncs"][name]) for name in names)])
    show_table("median (least-most)", ["", *names], rows)
    for name, speedup in report["speedup"].items():
        difference = report["output_difference"].get(name)
        same = "" if difference is None else f"; outputs differ by {difference:.1e}"
        print(f"{OURS} takes a step {Spread(**speedup)} times as fast as {name}{same}")
    if report["mfu"] is not None:
        print(f"MFU {report['mfu']:.1%}")
