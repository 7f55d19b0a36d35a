"""Weights of others: published files load as they are, strangers' pickles do not."""

import argparse
import copy
import datetime
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from dit_scale.errors import InputError
from dit_scale.interop import architecture_of, load_into, read_weights
from dit_scale.models import DiT
from dit_scale.torch_file import NotAWeight, read_torch_file


def model(num_classes: int = 3, latent_size: int = 4, depth: int = 1) -> DiT:
    made = DiT(latent_size=latent_size, patch_size=2, hidden_size=16, depth=depth, num_heads=2, num_classes=num_classes)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("form", ["bare", "trainer", "safetensors"])
def test_each_form_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    weights = model().state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(weights, path)
    elif form == "bare":
        torch.save(weights, path)
    else:  # what the published trainer writes
        content = {"model": model().state_dict(), "ema": weights, "opt": {}, "args": argparse.Namespace(epochs=3)}
        torch.save(content, path)
    found = read_weights(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def compiled(network: DiT) -> dict[str, torch.Tensor]:
    """Return a state dict after each block was compiled by itself."""
    network = copy.deepcopy(network)
    for index, block in enumerate(network.blocks):
        network.blocks[index] = torch.compile(block)  # type: ignore[assignment]
    return network.state_dict()


def prefixed(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrapper",
    ["DDP", "torch.compile", "compiled DDP", "compiled blocks", "average", "Lightning", "DeepSpeed", "DCP"],
)
def test_what_wrappers_put_around_weights_is_removed_and_told(
    wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = model()
    weights = network.state_dict()
    content, told = {
        "DDP": (prefixed(weights, "module."), "'module.' is removed from all names"),
        "torch.compile": (torch.compile(network).state_dict(), "'_orig_mod.' is removed"),
        "compiled DDP": ({"model": prefixed(weights, "module._orig_mod.")}, "'model' is taken; '_orig_mod.' is"),
        "compiled blocks": (compiled(network), "'_orig_mod.' is removed"),
        "average": ({"ema": AveragedModel(network).state_dict()}, "'ema' is taken; 'module.' is removed"),
        "Lightning": ({"state_dict": prefixed(weights, "model."), "epoch": 3}, "'state_dict' is taken; 'model.' is"),
        "DeepSpeed": ({"module": weights, "global_steps": 3}, "'module' is taken"),
        "DCP": ({"app": {"model": weights, "optim": {}}}, "'app' is taken; 'model' is taken"),
    }[wrapper]
    torch.save(content, tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO, "dit_scale"):
        found = read_weights(tmp_path / "weights.pt")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert told in caplog.messages[0]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("average", "other"),
    [
        *(("ema", other) for other in ("model", "state_dict")),
        ("model_ema", "model"),  # ConvNeXt
        ("state_dict_ema", "state_dict"),  # timm
        *(("ema_model", "model"), ("ema_state_dict", "model")),
    ],
)
def test_an_average_comes_first_by_all_its_names(
    average: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = model().state_dict(), model().state_dict()
    torch.save({other: second, average: first, "epoch": 3}, tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO, "dit_scale"):
        found = read_weights(tmp_path / "weights.pt")
    assert all(torch.equal(found[name], first[name]) for name in first)
    assert f"'{average}' is taken and not '{other}'" in caplog.messages[0]


@pytest.mark.parametrize("ema", ["weights", "list"])
def test_the_average_comes_first_and_the_log_names_what_was_left(
    ema: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = model().state_dict(), model().state_dict()
    average = first if ema == "weights" else {"decay": 0.999, "shadow_params": list(first.values())}
    torch.save({"state_dict": {}, "model": second, "ema": average}, tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO, "dit_scale"):
        found = read_weights(tmp_path / "weights.pt")
    expected = first if ema == "weights" else second
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    left = "'ema' is taken and not 'model'" if ema == "weights" else "'model' is taken and not 'ema' (it holds no named"
    assert left in caplog.messages[0]


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    weights = model().state_dict()
    torch.save(weights | prefixed(weights, "_orig_mod."), tmp_path / "weights.pt")
    with pytest.raises(InputError, match="hold pos_embed twice"):
        read_weights(tmp_path / "weights.pt")


def test_a_file_without_weights_where_they_are_looked_for_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"averaged": model().state_dict(), "steps": 3}, tmp_path / "weights.pt")
    with pytest.raises(
        InputError, match=r"'averaged', 'steps' is there.*under one of ema, model_ema, .*model, state_dict, module"
    ):
        read_weights(tmp_path / "weights.pt")


HARMLESS = {
    "numbers": [np.float64(1e-4), np.float32(1), np.int64(3), np.bool_(True), np.str_("a")],
    "array": np.arange(3.0),
    "types": [np.dtype("float32"), np.float32, type(np.dtype("float32"))],
    "random": np.random.default_rng(0).bit_generator.state | {"old": np.random.RandomState(0).get_state()},
    "args": argparse.Namespace(out=Path("runs/a"), data={"root": Path("/data")}, at=datetime.datetime(2026, 1, 1)),
}


@pytest.mark.parametrize("is_zip", [True, False])
def test_harmless_types_beside_weights_are_left_out(is_zip: bool, tmp_path: Path) -> None:
    weights, path = model().state_dict(), tmp_path / "weights.pt"
    torch.save({"ema": weights} | HARMLESS, path, _use_new_zipfile_serialization=is_zip)
    assert read_weights(path).keys() == weights.keys()
    args = read_torch_file(path)["args"]  # type: ignore[index]
    assert type(args) is NotAWeight  # nothing of its own is built, from what a stranger wrote


def test_types_go_by_all_the_names_that_numpy_and_python_gave_them(tmp_path: Path) -> None:
    weights, path = model().state_dict(), tmp_path / "weights.pt"
    torch.save({"ema": weights} | HARMLESS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for ours, others in (
        (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),  # numpy 1
        (b"cpathlib\nPosixPath\n", b"cpathlib._local\nPosixPath\n"),  # Python 3.13
        (b"cpathlib\nPosixPath\n", b"cpathlib\nWindowsPath\n"),
    ):
        assert ours in content
        path.write_bytes(content.replace(ours, others))
        assert read_weights(path).keys() == weights.keys()


class Trap:
    """A pickle that would run a function."""

    def __init__(self, function: Any, *arguments: object):
        self._reduced = function, arguments

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("function", [Path.touch, os.mkdir, print], ids=["method", "blocked module", "builtin"])
def test_a_strangers_pickle_is_not_run(
    function: Any, is_zip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = {"ema": model().state_dict(), "args": Trap(function, tmp_path / "sprung")}
    torch.save(trap, tmp_path / "weights.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InputError, match=r"weights\.pt' hold an object of type .*, whose code is not run") as caught:
        read_weights(tmp_path / "weights.pt")
    assert not (tmp_path / "sprung").exists()
    assert "sprung" not in capsys.readouterr().out
    assert_is_our_own_sentence(caught.value)


def assert_is_our_own_sentence(error: InputError) -> None:
    """Assert that a refusal is one line without torch's words and colours."""
    assert str(error).isprintable()
    assert not any(word in str(error) for word in ("weights_only", "WeightsUnpickler", "Unsupported", "__"))


def test_a_type_of_the_trainers_own_is_named_with_the_fix(tmp_path: Path) -> None:
    torch.save({"ema": model().state_dict(), "args": InputError("a")}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"type dit_scale\.errors\.InputError, .*torch\.save\(model\.state_dict"):
        read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("cut short", "cut short; copy the file again"),
        ("text", "neither a file of torch.save nor safetensors"),
        ("pointer", "git lfs pull"),
        ("program", "a TorchScript program"),
        ("plain pickle", "in a way that is not read without running code; save the state dict alone"),
        ("safetensors", "cannot be read as safetensors"),
    ],
)
def test_files_of_other_kinds_are_told_apart(kind: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    torch.save(model().state_dict(), path)
    if kind in ("cut short", "safetensors"):
        path.write_bytes(path.read_bytes()[:5000])
    elif kind in ("text", "pointer"):
        path.write_text("<html>404</html>" if kind == "text" else "version https://git-lfs.github.com/spec/v1\noid")
    elif kind == "program":
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))  # type: ignore[no-untyped-call]
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"steps": 3}))
    with pytest.raises(InputError, match=sentence) as caught:
        read_weights(path)
    assert_is_our_own_sentence(caught.value)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    contents = {"a list": [torch.zeros(1)], "one tensor": torch.zeros(1), "text": "a", "another object": None}
    for words, content in contents.items():
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(InputError, match=f"hold {words} and no names; give a file with a state dict"):
            read_weights(tmp_path / "other.pt")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    weights = model().state_dict()
    for name in ("blocks.0.attn.qkv.bias", "final_layer.linear.bias"):
        weights[name] = weights[name].clone()
        weights[name][-1] = bad
    with pytest.raises(
        InputError, match=r"'w.pt' hold NaN or infinity in blocks\.0\.attn\.qkv\.bias, of which no model"
    ):
        load_into(model(), weights, "w.pt")


def test_a_block_without_a_number_is_one_sentence() -> None:
    weights = model().state_dict()
    with pytest.raises(InputError, match=r"'w.pt' hold blocks\.x\.bias, but a DiT's blocks have numbers"):
        architecture_of(weights | {"blocks.x.bias": torch.zeros(1)}, "w.pt")


def test_another_class_count_keeps_the_null_label_and_all_else() -> None:
    old, new = model(num_classes=3), model(num_classes=5)
    fresh = new.y_embedder.embedding_table.weight.clone()
    load_into(new, old.state_dict(), "old")
    table = new.y_embedder.embedding_table.weight
    assert torch.equal(table[-1], old.y_embedder.embedding_table.weight[-1])
    assert torch.equal(table[:5], fresh[:5])
    assert torch.equal(new.final_layer.linear.weight, old.final_layer.linear.weight)


def test_another_latent_size_keeps_its_own_positions() -> None:
    old, new = model(latent_size=4), model(latent_size=8)
    positions = new.pos_embed.clone()
    load_into(new, old.state_dict(), "old")
    assert torch.equal(new.pos_embed, positions)


def test_another_model_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"blocks\.1\..* is absent there"):
        load_into(model(depth=2), model().state_dict(), "old")
