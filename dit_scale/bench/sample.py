"""`dit-scale bench sample`: DDIM with guidance, ours beside another code's, from the same weights and noise."""

from collections.abc import Callable
from dataclasses import asdict, replace
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
from dit_scale.bench.step import OURS, random_model_of
from dit_scale.config import Config, EngineConfig, SamplingConfig
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, device_of, set_threads
from dit_scale.draws import Stream
from dit_scale.errors import InputError, nearest
from dit_scale.latents import LatentSpec
from dit_scale.models import PRESETS
from dit_scale.parameters import DTYPES
from dit_scale.sampling import SamplingSettings, sample_latents
from dit_scale.sampling.weaker import KINDS
from dit_scale.zero.engine import wrap_blocks

_PACKAGES = ("dit_scale", "torch", "xformers", "numpy")
_CFG_SCALE = 4.0
_EARLY_BLOCK = 8


def bench_sample(
    config: Config,
    image_size: int,
    batch_size: int,
    num_steps: int,
    engine: EngineConfig,
    peers: Peers,
    guides: list[str],
    rounds: int,
    json_file: Path | None,
) -> None:
    """Draw latents with each in turn, guided by the null label and by ``guides``; print and write what it took."""
    report = begin_report("sample", _PACKAGES, json_file)
    world, device = World(), device_of(World())
    report["threads"] = set_threads(world)
    latents = LatentSpec(4, image_size // 8)
    model_name, model = config.model.name, random_model_of(_with_guides(config, guides), latents, device)
    beside = ("early_layer.", "route.")
    weights = {name: value.cpu() for name, value in model.state_dict().items() if not name.startswith(beside)}
    others = [peers.build(path, model_name, latents, weights, device) for path in peers.paths]
    model.to(device, DTYPES[engine.precision]).eval()
    wrap_blocks(model, engine)
    indices = torch.arange(batch_size, device=device)
    labels = indices % CLASSES
    protocol = SamplingConfig("ddim", num_steps, cfg_scale=_CFG_SCALE, guidance_channels=3)
    settings = SamplingSettings.of(protocol, seed=0)
    by_guide = {_name_of(guide): replace(settings, guide_by=guide) for guide in dict.fromkeys([None, *guides])}
    objective = build_objective("gaussian", learn_sigma=model.learn_sigma)
    for setting in by_guide.values():
        setting.check(objective, model)
    noise = draws.normal(settings.seed, Stream.INITIAL_NOISE, indices, latents.shape)
    null_label = model.null_label
    assert null_label is not None

    def ours(settings: SamplingSettings) -> Tensor:
        return sample_latents(model, objective, latents, labels, indices, settings)

    actions: dict[str, Callable[[], Tensor]] = {name: partial(ours, setting) for name, setting in by_guide.items()}
    for peer in others:
        actions[peer.name] = partial(peer.sample, noise, labels, null_label, num_steps, _CFG_SCALE)
    drawn = {name: action() for name, action in actions.items()}
    costs = in_rounds(actions, rounds)
    seconds = {name: [cost.seconds for cost in found] for name, found in costs.items()}
    report |= {
        "model": model_name,
        "settings": {"model": asdict(config.model), "routing": asdict(config.routing)},
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
        "against_null": {
            name: asdict(Spread.of([a / b for a, b in zip(seconds[OURS], seconds[name], strict=True)]))
            for name in by_guide
            if name != OURS
        },
        "latent_difference": {
            peer.name: ((drawn[OURS] - drawn[peer.name]).abs().max() / drawn[peer.name].abs().max()).item()
            for peer in others
        },
    }
    _show(report)
    write_report(report, json_file)


def _with_guides(config: Config, guides: list[str]) -> Config:
    """Return a configuration whose network has what it must have to be guided so."""
    if unknown := next((guide for guide in guides if guide not in KINDS), None):
        raise InputError(f"--guide-by {unknown} is not known here{nearest(unknown, KINDS)}")
    depth = config.model.depth or PRESETS.get(config.model.name, {}).get("depth", 0)
    if "early" not in guides or config.model.early_block or not depth:
        return config
    return replace(config, model=replace(config.model, early_block=min(_EARLY_BLOCK, depth)))


def _name_of(guide: str | None) -> str:
    return OURS if guide is None else f"{OURS}, guide_by {guide}"


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
    for name, speedup in report["against_null"].items():
        print(f"{name} draws {Spread(**speedup)} times as many latents/s as {OURS} guided by the null label")
    for name, speedup in report["speedup"].items():
        print(
            f"{OURS} is {Spread(**speedup)} times as fast as {name}; latents differ by "
            f"{report['latent_difference'][name]:.1e}"
        )
