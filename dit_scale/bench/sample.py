"""`dit-scale bench sample`: DDIM with guidance, ours beside another code's, from the same weights and noise."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.bench.loop import CLASSES
from dit_scale.bench.measure import Spread, in_rounds, what_seconds_are
from dit_scale.bench.peer import Peers
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.bench.step import OURS, random_model
from dit_scale.config import EngineConfig, SamplingConfig
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, device_of, set_threads
from dit_scale.draws import Stream
from dit_scale.latents import LatentSpec
from dit_scale.parameters import DTYPES
from dit_scale.sampling import SamplingSettings, sample_latents
from dit_scale.zero.engine import wrap_blocks

_PACKAGES = ("dit_scale", "torch", "xformers", "numpy")
_CFG_SCALE = 4.0


def bench_sample(
    model_name: str,
    image_size: int,
    batch_size: int,
    num_steps: int,
    engine: EngineConfig,
    peers: Peers,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Draw latents with each in turn, ``rounds`` times; print and write what it took."""
    report = begin_report("sample", _PACKAGES, json_file)
    world, device = World(), device_of(World())
    report["threads"] = set_threads(world)
    latents = LatentSpec(4, image_size // 8)
    model = random_model(model_name, latents, device)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    others = [peers.build(path, model_name, latents, weights, device) for path in peers.paths]
    model.to(device, DTYPES[engine.precision]).eval()
    wrap_blocks(model, engine)
    indices = torch.arange(batch_size, device=device)
    labels = indices % CLASSES
    protocol = SamplingConfig("ddim", num_steps, cfg_scale=_CFG_SCALE, guidance_channels=3)
    settings = SamplingSettings.of(protocol, seed=0)
    settings.check(build_objective("gaussian"), latents.channels, model.out_channels, model.condition.has_null)
    noise = draws.normal(settings.seed, Stream.INITIAL_NOISE, indices, latents.shape)
    null_label = model.null_label
    assert null_label is not None

    def ours() -> Tensor:
        return sample_latents(model, build_objective("gaussian"), latents, labels, indices, settings)

    actions: dict[str, Callable[[], Tensor]] = {OURS: ours}
    for peer in others:
        actions[peer.name] = partial(peer.sample, noise, labels, null_label, num_steps, _CFG_SCALE)
    drawn = {name: action() for name, action in actions.items()}
    costs = in_rounds(actions, rounds)
    seconds = {name: [cost.seconds for cost in found] for name, found in costs.items()}
    report |= {
        "model": model_name,
        "batch_size": batch_size,
        "image_size": image_size,
        "num_sampling_steps": num_steps,
        "cfg_scale": _CFG_SCALE,
        "precision": engine.precision,
        "compile": engine.compile,
        "peer_precision": peers.precision,
        "seconds_are": what_seconds_are(device),
        "seconds": {name: asdict(Spread.of(found)) for name, found in seconds.items()},
        "speedup": {
            peer.name: asdict(Spread.of([b / a for a, b in zip(seconds[OURS], seconds[peer.name], strict=True)]))
            for peer in others
        },
        "latent_difference": {
            peer.name: ((drawn[OURS] - drawn[peer.name]).abs().max() / drawn[peer.name].abs().max()).item()
            for peer in others
        },
    }
    _show(report)
    write_report(report, json_file)


def _show(report: dict[str, Any]) -> None:
    show(report)
    print(
        f"{report['model']} at {report['image_size']} px, {report['batch_size']} latents, DDIM of "
        f"{report['num_sampling_steps']} steps, guidance {report['cfg_scale']:g} on three channels, "
        f"{report['precision']}{', compiled' if report['compile'] else ''} "
        f"(peers eager in {report['peer_precision']}); {report['seconds_are']}"
    )
    rows = [
        [name, str(Spread(**found)), f"{report['batch_size'] / found['median']:.3g}"]
        for name, found in report["seconds"].items()
    ]
    show_table("median (least-most)", ["", "seconds", "latents/s"], rows)
    for name, speedup in report["speedup"].items():
        print(
            f"{OURS} is {Spread(**speedup)} times as fast as {name}; latents differ by "
            f"{report['latent_difference'][name]:.1e}"
        )
