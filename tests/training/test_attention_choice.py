"""A run settles on one attention kernel, and keeps to it where it goes on."""

import json
from pathlib import Path

import pytest
import torch

from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World
from dit_scale.models import DiT
from dit_scale.models.kernel_timing import AttentionShape
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.training.attention_choice import ATTENTION, _choice, settle_attention
from dit_scale.zero.engine import wrap_blocks

CPU = torch.device("cpu")


def model(attention: str = "auto") -> DiT:
    return DiT(latent_size=8, patch_size=2, hidden_size=16, depth=1, num_heads=2, num_classes=3, attention=attention)


def test_a_cpu_needs_no_measurement(tmp_path: Path) -> None:
    network = model()
    settle_attention(network, 4, CPU, torch.float32, tmp_path, World(), Conveniences(tmp_path, World()))
    assert network.attention == "auto"
    assert not list(tmp_path.iterdir())


def test_without_kernels_nothing_is_measured(tmp_path: Path) -> None:
    network, world = model(), World()
    wrap_blocks(network, EngineConfig(kernels="off"))
    assert not network.has_kernels
    settle_attention(network, 4, torch.device("cuda"), torch.float32, tmp_path, world, Conveniences(tmp_path, world))
    assert network.attention == "auto"
    assert not list(tmp_path.iterdir())


def test_what_was_measured_is_written_down_and_kept(tmp_path: Path) -> None:
    path, shape = tmp_path / ATTENTION, AttentionShape.of(model(), 4)
    conveniences = Conveniences(tmp_path, World())
    assert (
        _choice(path, shape, CPU, torch.float32, conveniences) == "sdpa"
    )  # the only one of a GPU's candidates that a CPU has
    written = json.loads(path.read_text())
    assert written["setting"]["shape"] == {"batch_size": 4, "num_tokens": 16, "num_heads": 2, "head_size": 8}
    assert "cannot" not in written["seconds"]["xformers"] and written["seconds"]["sdpa"] > 0.0
    path.write_text(json.dumps(written | {"chosen": "flash"}))  # as if another had been faster then
    assert _choice(path, shape, CPU, torch.float32, conveniences) == "flash"
    path.write_text(json.dumps(written | {"chosen": "flash-padded"}))  # by a run from before that kernel was retired
    assert _choice(path, shape, CPU, torch.float32, conveniences) == "sdpa"
    assert _choice(path, shape, CPU, torch.bfloat16, conveniences) == "sdpa"  # another setting is measured anew
    path.write_text("{torn")
    assert _choice(path, shape, CPU, torch.float32, conveniences) == "sdpa"


def test_a_choice_that_cannot_be_written_down_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape, conveniences = AttentionShape.of(model(), 4), Conveniences(tmp_path, World())
    assert _choice(tmp_path / "nowhere" / ATTENTION, shape, CPU, torch.float32, conveniences) == "sdpa"
    assert caplog.messages[0].startswith(f"writing {ATTENTION} failed (No such file or directory: ")
