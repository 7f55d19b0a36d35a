"""How long the host takes to begin a step, whatever computes it: a deep model so narrow that computing is nothing.

    python benchmarks/host_time.py [--depth 28]

Milliseconds of a step and of its parts on one rank and one thread, in bf16, compiled, under ZeRO 1. The little that is
computed is in them. An estimate of how fast a GPU beside such a host may be before it waits: its launches are others.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from dit_scale.bench.loop import Loop
from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World, process_group, set_threads
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT

STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description="The host's time of a step.")
    parser.add_argument("--depth", type=int, default=28, help="blocks (default 28, as DiT-XL has)")
    depth = parser.parse_args().depth
    world, latents = World(), LatentSpec(channels=4, size=4)
    set_threads(world, 1)
    model = DiT(latent_size=4, patch_size=2, hidden_size=32, depth=depth, num_heads=2, num_classes=1000)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    engine = EngineConfig(zero_stage=1, precision="bf16", compile=True)
    with process_group(world, "cpu"):
        loop = Loop(model, latents, engine, 2, 2, world, "cpu")
        for _ in range(5):
            loop.step()
        steps = [_seconds(loop.step) for _ in range(STEPS)]
        parts: dict[str, list[float]] = {}
        for _ in range(STEPS):
            for name, part in loop.parts().items():
                parts.setdefault(name, []).append(_seconds(part))
    print(f"{depth} blocks: a step {median(steps) * 1e3:.1f} ms ({min(steps) * 1e3:.1f}-{max(steps) * 1e3:.1f})")
    for name, seconds in parts.items():
        print(f"  {name} {median(seconds) * 1e3:.2f} ms")


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
