"""Weights of others: published files load as they are, strangers' pickles do not."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit_scale.errors import InputError
from dit_scale.interop import load_into, read_weights
from dit_scale.models import DiT


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


def test_a_strangers_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"weights\.pt"):
        read_weights(path)
    assert not (tmp_path / "sprung").exists()


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="hold a list"):
        read_weights(tmp_path / "list.pt")


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
