"""Comparison with the reference outputs in tests/golden, with a record of how close each comes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dit_scale.models import DiT

GOLDEN = Path(__file__).parent / "golden"


def assert_parity(name: str, actual: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Compare numbers with a reference, and print the largest error."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    record(name, actual, expected)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


def record(name: str, actual: Tensor, expected: Tensor) -> float:
    """Print the largest error, and return it relative to the largest reference value.

    Where the environment names a file in DIT_SCALE_PARITY_REPORT, ``name max_abs max_rel`` is added.
    """
    error = (actual.double() - expected.double()).abs().max()
    relative = error / expected.double().abs().max()
    line = f"{name} {error:.2e} {relative:.2e}"
    print(line)
    if report := os.environ.get("DIT_SCALE_PARITY_REPORT"):
        with Path(report).open("a") as file:
            file.write(line + "\n")
    return relative.item()


def load_json(name: str) -> Any:
    """Read tests/golden/NAME.json."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def load_tensors(name: str) -> dict[str, Tensor]:
    """Read tests/golden/NAME.safetensors."""
    return load_file(GOLDEN / f"{name}.safetensors")


@dataclass
class Tiny:
    """A small published model with its reference inputs and outputs."""

    model: DiT
    io: dict[str, Tensor]
    facts: dict[str, Any]


def load_tiny(name: str) -> Tiny:
    """Build ``tiny_a`` or ``tiny_b`` with its published weights."""
    facts = load_json(name)
    config = facts["config"]
    model = DiT(
        latent_size=config["size"],
        patch_size=config["patch"],
        hidden_size=config["hidden"],
        depth=config["depth"],
        num_heads=config["heads"],
        num_classes=config["classes"],
    )
    model.load_state_dict(load_tensors(f"{name}_weights"), strict=True)
    return Tiny(model, load_tensors(f"{name}_io"), facts)
