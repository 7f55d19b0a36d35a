"""Checkpoints that others keep as folders: what the sentence advises is done, and what comes of it is read."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor

from dit_scale.autoencoder import PCACodec, save_autoencoder
from dit_scale.checkpoint import open_whole
from dit_scale.config import DiffusionConfig
from dit_scale.errors import InputError
from dit_scale.interop import read_weights, refuse_folder
from dit_scale.interop.importing import Unsaid, import_weights
from dit_scale.models import DiT
from dit_scale.training.initial import load_initial
from tests.launch import run
from tests.parity import load_tiny

WEIGHTS = Path(__file__).parent.parent / "golden" / "tiny_a_weights.safetensors"
STAGES = (0, 1, 3)
Import = Callable[..., Path]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


@pytest.fixture(scope="module")
def deepspeeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    run([folder, *STAGES], ranks=2, module="tests.interop.deepspeed_worker")
    return folder


@pytest.fixture(scope="module")
def importing(tmp_path_factory: pytest.TempPathFactory) -> Import:
    """Return a function that imports in this process, with an autoencoder that needs no hub."""
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codec = tmp_path_factory.mktemp("codec")
    save_autoencoder(PCACodec.fit([images], patch_size=2, channels=4), codec)

    def import_(source: Path, out: Path, latent_size: int | None = None) -> Path:
        import_weights(source, out, Unsaid(autoencoder=str(codec), num_heads=4, latent_size=latent_size))
        return out

    return import_


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    return str(caught.value)


def follow(sentence: str) -> Path:
    """Do what a refusal advises, and return the file that it says to give then."""
    found = re.search(r"(?:convert it with (python .*?) and )?give (?:its file of weights, )?'(/.*)'$", sentence)
    assert found is not None, sentence
    if found[1]:
        _, _, module, *words = shlex.split(found[1])
        run(words, module=module)
    return Path(found[2])


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeeds_own_checkpoint_is_read_after_what_the_sentence_says(
    stage: int, importing: Import, deepspeeds: Path, golden: dict[str, Tensor], tmp_path: Path
) -> None:
    source = deepspeeds / f"zero-{stage}"
    sentence = refusal(lambda: importing(source, tmp_path / "run"))
    model = load_tiny("tiny_a").model
    assert refusal(lambda: load_initial(model, str(source), DiffusionConfig())) == sentence
    found = read_weights(follow(sentence))
    assert {*golden} - {*found} <= {"pos_embed"}  # ZeRO 1 and bf16 lose what is not trained
    for name, value in found.items():
        torch.testing.assert_close(value.float(), golden[name], atol=0.0, rtol=2**-8 if stage else 0.0)


def test_a_part_of_zero_3_leads_to_its_folder(deepspeeds: Path) -> None:
    part = next((deepspeeds / "zero-3").glob("*/*_model_states.pt"))
    assert "zero_to_fp32" in refusal(lambda: read_weights(part))
    assert "zero_to_fp32" in refusal(lambda: refuse_folder(part.parent))


def test_deepspeeds_rounded_copy_is_read_with_a_warning(
    deepspeeds: Path, golden: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    copy = next((deepspeeds / "zero-1").glob("*/mp_rank_00_model_states.pt"))
    assert read_weights(copy).keys() == golden.keys()
    assert "rounded to compute with" in caplog.text
    assert str(copy.parent) in caplog.text


def test_weights_without_positions_are_imported_with_the_latents_size(
    importing: Import, golden: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({name: value for name, value in golden.items() if name != "pos_embed"}, tmp_path / "weights.pt")
    asked = refusal(lambda: importing(tmp_path / "weights.pt", tmp_path / "run"))
    assert "hold no pos_embed" in asked
    assert "--latent-size N" in asked
    for wrong in (7, 1):
        sentence = refusal(lambda size=wrong: importing(tmp_path / "weights.pt", tmp_path / "run", size))
        assert f"--latent-size {wrong} does not fit" in sentence
    positions = open_whole(importing(tmp_path / "weights.pt", tmp_path / "run", 8)).whole("ema")["pos_embed"]
    torch.testing.assert_close(positions, golden["pos_embed"])


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_checkpoint_of_torch_distributed_is_read_after_what_the_sentence_says(
    is_nested: bool, importing: Import, golden: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {"model": golden, "optimizer": {"lr": 1e-4}}
    source = tmp_path / "at step 3"  # a name that a shell would split
    dcp.save({"app": state} if is_nested else state, checkpoint_id=source, no_dist=True)
    sentence = refusal(lambda: importing(source, tmp_path / "run"))
    assert refusal(lambda: load_initial(load_tiny("tiny_a").model, str(source), DiffusionConfig())) == sentence
    assert refusal(lambda: read_weights(source / "__0_0.distcp")) == sentence
    found = read_weights(follow(sentence))
    assert all(torch.equal(found[name], golden[name]) for name in golden)


def test_a_folder_of_files_names_them(importing: Import, tmp_path: Path) -> None:
    for name in ("optimizer.bin", "pytorch_model.bin"):
        (tmp_path / name).touch()
    sentence = refusal(lambda: importing(tmp_path, tmp_path / "run"))
    assert "give one of them: optimizer.bin, pytorch_model.bin" in sentence


def test_a_run_of_our_own_needs_no_import(importing: Import, tmp_path: Path) -> None:
    out = importing(WEIGHTS, tmp_path / "run")
    checkpoint = out / "checkpoints" / "step-00000000"
    for source in (out, out / "checkpoints", checkpoint):
        assert f"init_from={source} trains from it" in refusal(lambda source=source: importing(source, tmp_path / "b"))
    assert f"give its folder, '{checkpoint}'" in refusal(lambda: read_weights(checkpoint / "rank-00000.safetensors"))
    tiny = load_tiny("tiny_a").model
    expected = tiny.state_dict()["final_layer.linear.weight"].clone()
    torch.nn.init.zeros_(tiny.final_layer.linear.weight)
    load_initial(tiny, str(out), DiffusionConfig())
    assert torch.equal(tiny.final_layer.linear.weight, expected)
    (tmp_path / "model_index.json").write_text("{}")
    assert f"run dit-scale import {tmp_path} --out RUN" in refusal(
        lambda: load_initial(tiny, str(tmp_path), DiffusionConfig())
    )
    other = DiT(latent_size=8, patch_size=2, hidden_size=64, depth=1, num_heads=4, num_classes=10)
    assert "are of another model" in refusal(lambda: load_initial(other, str(out), DiffusionConfig()))
