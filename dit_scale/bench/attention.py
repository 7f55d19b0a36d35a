"""`dit-scale bench attention`: forward and backward of each kernel on a model's shape."""

from dataclasses import asdict
from pathlib import Path

import torch

from dit_scale.bench.loop import CLASSES
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World, device_of, set_threads
from dit_scale.latents import LatentSpec
from dit_scale.models import build_model
from dit_scale.models.kernel_timing import AttentionShape, error_of_backend, fastest, seconds_of_backends
from dit_scale.parameters import DTYPES

_PACKAGES = ("dit_scale", "torch", "xformers", "numpy")


def bench_attention(
    model_name: str, image_size: int, batch_size: int, engine: EngineConfig, json_file: Path | None
) -> None:
    """Time every kernel that runs here; print and write what each takes."""
    report = begin_report("attention", _PACKAGES, json_file)
    device = torch.device(device_of(World()))
    report["threads"] = set_threads(World())
    with torch.device("meta"):
        model = build_model(model_name, latent_size=LatentSpec(4, image_size // 8).size, num_classes=CLASSES)
    shape = AttentionShape.of(model, batch_size)
    found = seconds_of_backends(shape, device, DTYPES[engine.precision])
    found |= seconds_of_backends(shape, device, DTYPES[engine.precision], ["matmul"], is_compiled=engine.compile)
    chosen = fastest(found)
    runs = [name for name, value in found.items() if isinstance(value, float)]
    errors = {name: error_of_backend(name, shape, device, DTYPES[engine.precision]) for name in runs}
    report |= {"model": model_name, "shape": asdict(shape), "precision": engine.precision, "compile": engine.compile}
    report |= {"seconds": found, "errors": errors, "fastest": chosen}
    show(report)
    print(
        f"{model_name} at {image_size} px: {shape.batch_size} images of {shape.num_tokens} tokens, {shape.num_heads} "
        f"heads of {shape.head_size}, {engine.precision}{', matmul compiled' if engine.compile else ''}"
    )
    quickest = sorted(runs, key=lambda name: float(found[name]))
    rows = [[name, f"{1000 * float(found[name]):.3f}", f"{errors[name]:.1e}", ""] for name in quickest]
    rows += [[name, "-", "-", str(why)] for name, why in found.items() if name not in runs]
    show_table("forward and backward of a block", ["kernel", "ms", "error", "does not run here"], rows)
    print("error: of output and gradients against fp64, over the largest value of each")
    write_report(report, json_file)
