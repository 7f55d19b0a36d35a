"""Weights by name, and that there is one place for each way to load them."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dit_scale.errors import InputError
from dit_scale.models import DiT
from dit_scale.weights import load_trained
from tests.launch import ROOT


def small() -> DiT:
    return DiT(latent_size=4, patch_size=2, hidden_size=16, depth=1, num_heads=2, num_classes=3)


def test_only_a_fixed_table_may_be_absent() -> None:
    model, weights = small(), {name: value + 1 for name, value in small().state_dict().items()}
    positions = model.pos_embed.clone()
    del weights["pos_embed"]
    load_trained(model, weights, "step-00000001")
    assert torch.equal(model.pos_embed, positions)
    assert torch.equal(model.final_layer.linear.weight, weights["final_layer.linear.weight"])


@pytest.mark.parametrize("change", ["missing", "left over", "another shape"])
def test_any_other_difference_is_refused_by_name(change: str) -> None:
    weights = small().state_dict()
    if change == "missing":
        del weights["blocks.0.attn.qkv.bias"]
    elif change == "left over":
        weights["blocks.7.attn.qkv.bias"] = torch.zeros(1)
    else:
        weights["blocks.0.attn.qkv.bias"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"'step-00000001' are of another model: blocks\.\d\.attn\.qkv\.bias is"):
        load_trained(small(), weights, "step-00000001")


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Yield each call of a method or of a module's function in the packages: file, call, name."""
    for package in ("dit_scale", "preprocessing"):
        for path in sorted(Path(ROOT, package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield str(path.relative_to(ROOT)), node, ast.unparse(node.func)


def test_weights_are_loaded_in_one_place_each() -> None:
    """Elsewhere a missing weight would keep whatever it was, or a pickle would run."""
    names = [(path, name) for path, _, name in calls()]
    hub = {path for path, name in names if name.endswith(".from_pretrained")}
    assert hub == {"dit_scale/weights.py"}
    pickles = {path for path, name in names if name in ("torch.load", "pickle.load", "pickle.loads", "joblib.load")}
    # The second reads statistics of images, whose arrays of numpy it must keep.
    assert pickles == {"dit_scale/torch_file.py", "dit_scale/evaluation/reference.py"}
    loads = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        for _, call, n in calls()
        if n == "torch.load"
    ]
    assert [options.get("weights_only") for options in loads] == ["True", "True"]
    lenient = [
        path
        for path, call, name in calls()
        if name.endswith(".load_state_dict") and any(keyword.arg == "strict" for keyword in call.keywords)
    ]
    assert lenient == []


@pytest.mark.parametrize(("library", "name"), [("diffusers", "AutoencoderKL"), ("transformers", "Dinov2Model")])
def test_a_library_is_imported_without_a_word(library: str, name: str) -> None:
    """It would tell of torchao's optional parts, and xformers of its build, above every command's output."""
    code = f"from dit_scale.weights import from_library; print(from_library('{library}', '{name}').__name__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.stdout, result.stderr) == (f"{name}\n", "")
    imports = [
        str(path.relative_to(ROOT))
        for package in ("dit_scale", "preprocessing")
        for path in Path(ROOT, package).rglob("*.py")
        if re.search(r"^\s+(from|import) (diffusers|transformers)\b", path.read_text(), re.M)
    ]
    assert imports == []
