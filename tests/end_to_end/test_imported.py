"""Published weights as a user goes on from them: imported, sampled, fine-tuned, resumed and exported."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from dit_scale.checkpoint import Checkpoint
from tests.end_to_end.runs import losses, settings
from tests.launch import run
from tests.parity import GOLDEN

WEIGHTS = GOLDEN / "recipes" / "repa_a_weights.safetensors"
NETWORK = [
    *("model.hidden_size=64", "model.depth=3", "model.num_heads=4", "model.learn_sigma=false"),
    *("diffusion.name=flow", "train.learning_rate=0"),
]
LABELS = "y_embedder.embedding_table.weight"


def test_repas_weights_are_sampled_and_fine_tuned(shards: Path, tmp_path: Path) -> None:
    imported, tuned, file = tmp_path / "imported", tmp_path / "tuned", tmp_path / "weights.pt"
    run(["import", WEIGHTS, "--num-heads", 4, "--keep-projectors", "--autoencoder", shards, "--out", imported])
    run(
        ["sample", imported, "--num-samples", 2, "--num-sampling-steps", 2, "--cfg-scale", 2, "--out", tmp_path / "out"]
    )
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 2
    begin = [*NETWORK, f"init_from={imported}"]
    refused = run(settings(shards, tuned, *begin, "train.steps=1"), check=False)
    assert refused.returncode == 2
    assert "set diffusion.time_at_data=0" in refused.stderr
    begin.append("diffusion.time_at_data=0")
    run(settings(shards, tuned, *begin, "train.steps=1"))
    run(settings(shards, tuned, *begin, "train.steps=2", "engine.zero_stage=2"), ranks=2)
    assert len(losses(tuned)) == 2
    assert (tuned / "checkpoints" / "step-00000002").is_dir()
    run(["export", tuned, "--to", "pt", "--weights", "master", "--out", file])
    golden, written = load_file(WEIGHTS), torch.load(file, weights_only=True)
    assert written.keys() == {name for name in golden if not name.startswith("projectors.")}
    # At a rate of 0 nothing changes; the classes are others, and their null label is the same.
    assert all(torch.equal(value, golden[name]) for name, value in written.items() if name != LABELS)
    assert torch.equal(written[LABELS][-1], golden[LABELS][-1])
    assert not any(
        name.startswith("projectors.") for name in Checkpoint(tuned / "checkpoints" / "step-00000002").shapes
    )
    first = run(["export", imported, "--to", "pt", "--keep-projectors", "--out", tmp_path / "again.pt"])
    assert "must be told" not in first.stderr
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == golden.keys()
    assert all(torch.equal(value, golden[name]) for name, value in again.items())
    none = run(["export", tuned, "--to", "pt", "--keep-projectors", "--out", tmp_path / "no.pt"], check=False)
    assert none.returncode == 2
    assert "--keep-projectors has no effect" in none.stderr
