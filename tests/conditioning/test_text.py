"""A condition that is no label, added as a newcomer would: a small text embedding, from the record to guidance."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import streaming
import torch
from torch import Tensor, nn

from dit_scale.autoencoder import PCACodec
from dit_scale.classes import ClassNames
from dit_scale.conditioning import CONDITIONS, Condition, Labels, RecordArray, build_condition
from dit_scale.config import Config, DataConfig, ModelConfig
from dit_scale.data.loader import Loader
from dit_scale.data.mds import to_mds, to_tar
from dit_scale.diffusion import build_objective, total
from dit_scale.errors import InputError
from dit_scale.planning.measuring import products_of
from dit_scale.recipe import model_of
from dit_scale.sampling import Sampler, SamplingSettings, sample_latents
from dit_scale.training.data import open_dataset
from dit_scale.training.loss import LossFunction
from tests.data.shard_folder import LATENTS, write_folder
from tests.networks import fill


class TextEmbedding(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, hidden_size)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear(text.to(self.linear.weight.dtype).mean(dim=1))  # [N, D]


class Text(Condition):
    stored = RecordArray("text", "float16", (4, 8))
    null = 0.0

    def embedding(self, hidden_size: int) -> TextEmbedding:
        return TextEmbedding(hidden_size)


MODEL = ModelConfig("custom", 2, 16, 2, 2, condition="text", label_dropout=0.25)
CONFIG = Config(run_dir="r", data=DataConfig(path="d"), model=MODEL)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONDITIONS, "text", Text)


@pytest.mark.parametrize("container", ["tar", "mds"])
def test_a_text_is_read_dropped_embedded_and_guides(container: str, tmp_path: Path) -> None:
    written = write_folder(tmp_path / "tar", [7, 5], arrays=(Text.stored,))
    if container == "mds":
        to_mds(tmp_path / "tar", tmp_path / "mds")
    dataset = open_dataset(DataConfig(path=str(tmp_path / container)), MODEL.condition)
    torch.manual_seed(0)
    model = model_of(CONFIG, LATENTS, len(dataset.class_names))
    fill(model, std=0.2)
    loss_function = LossFunction(build_objective("gaussian"), LATENTS, 0, MODEL.label_dropout, model.condition)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with Loader(dataset, seed=0, global_batch_size=8) as loader:
        for _ in range(3):
            batch = next(loader)
            assert batch.conditions.shape == (8, 4, 8) and batch.conditions.dtype == torch.float16
            texts = np.stack([written[int(key)].arrays["text"] for key in batch.keys])
            assert np.array_equal(batch.conditions.numpy(), texts)
            total(loss_function(model, batch.moments, batch.conditions, batch.positions)).mean().backward()
            assert model.y_embedder.linear.weight.grad.abs().sum() > 0
            optimizer.step()
            optimizer.zero_grad()
    assert products_of(model.config).training > 0  # plan sees it, too
    settings = SamplingSettings(num_sampling_steps=3, cfg_scale=2.0)
    text, indices = batch.conditions[:2], torch.arange(2)
    settings.check(loss_function.objective, model)
    guided = sample_latents(model, loss_function.objective, LATENTS, text, indices, settings)
    plain = SamplingSettings(num_sampling_steps=3)
    by_text = sample_latents(model, loss_function.objective, LATENTS, text, indices, plain)
    by_null = sample_latents(model, loss_function.objective, LATENTS, torch.zeros_like(text), indices, plain)
    assert torch.isfinite(guided).all() and not torch.allclose(guided, by_text) and not torch.allclose(guided, by_null)


class NamedText(Text):
    """Has two texts that a user can ask for by name."""

    def choices(self, class_names: ClassNames) -> ClassNames:
        return ClassNames(("low", "high"))

    def values(self, numbers: Tensor) -> Tensor:
        texts = torch.stack([torch.full((4, 8), -1.0), torch.full((4, 8), 1.0)])  # [2, 4, 8]
        return texts.half().to(numbers.device)[numbers]


def test_texts_with_names_are_sampled_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONDITIONS, "text", NamedText)
    torch.manual_seed(0)
    model = model_of(CONFIG, LATENTS, 3)
    fill(model, std=0.2)
    codec = PCACodec.fit([torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)], 4, 4)
    sampler = Sampler.of(CONFIG, LATENTS, ClassNames("abc"), codec, "cpu", "auto")
    sampler = sampler.with_weights(model.state_dict(), "these", {})
    labels = sampler.labels_of(sampler.class_names.asked_for(["high", "low"]), 3)
    assert labels == [1, 0, 1]
    settings = SamplingSettings(num_sampling_steps=3, cfg_scale=2.0)
    texts = torch.tensor([1.0, -1.0, 1.0]).half().view(3, 1, 1).expand(3, 4, 8)
    latent = sample_latents(sampler.model, sampler.objective, LATENTS, texts, torch.arange(3), settings)
    images = sampler.images(labels, range(3), settings)
    assert np.array_equal(images, sampler.decode(latent))
    assert not np.array_equal(images, sampler.images([0, 0, 0], range(3), settings))


def test_texts_are_dropped_where_labels_would_be() -> None:
    """The draw belongs to the image's place in the stream, whatever its condition."""
    count, seen = 64, []

    def denoiser(noised_latent: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        seen.append(condition)
        return torch.zeros(count, 8, 4, 4)

    moments, positions = torch.zeros(count, *LATENTS.moments_shape), torch.arange(count)
    for condition, values in ((Labels(3), positions % 3), (Text(3), torch.ones(count, 4, 8).half())):
        loss_function = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.25, condition)
        loss_function(denoiser, moments, values, positions)
    labels, texts = seen
    assert 0 < (labels == 3).sum() < count
    assert torch.equal((texts == 0).all(dim=(1, 2)), labels == 3)
    assert torch.equal((texts == 1).all(dim=(1, 2)), labels != 3)


def test_anyone_reads_the_text(tmp_path: Path) -> None:
    """It is a member KEY.text.npy of the tar, and a column of MDS; there and back the bytes are the same."""
    written = write_folder(tmp_path / "tar", [3, 2], arrays=(Text.stored, RecordArray("also", "int64", (2,))))
    to_mds(tmp_path / "tar", tmp_path / "mds")
    to_tar(tmp_path / "mds", tmp_path / "again")
    for path in (tmp_path / "tar").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    streamed = streaming.LocalDataset(str(tmp_path / "mds"))
    with tarfile.open(tmp_path / "tar" / "shard-000000.tar") as archive:
        for number in range(3):
            member = archive.extractfile(f"000000000{number}.text.npy")
            assert member is not None
            assert np.array_equal(np.load(io.BytesIO(member.read())), written[number].arrays["text"])
            assert np.array_equal(streamed[number]["text"], written[number].arrays["text"])
            assert np.array_equal(streamed[number]["moments"], written[number].moments)


def test_a_damaged_text_stops_the_run_or_is_set_aside(tmp_path: Path) -> None:
    write_folder(tmp_path, [3], arrays=(Text.stored,))
    path = tmp_path / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[-1024 - 450] ^= 1  # the last record's last 64 numbers, padded to a block
    path.write_bytes(content)
    dataset = open_dataset(DataConfig(path=str(tmp_path)), "text")
    everything = np.arange(3), np.zeros(3, bool)
    with pytest.raises(InputError, match=r"record 0000000002 of shard '.*' does not have the digest"):
        dataset.read(*everything)
    _, texts, damaged = dataset.read_all(*everything)
    assert list(damaged) == [2] and not texts[2].any() and texts[:2].any()
    open_dataset(DataConfig(path=str(tmp_path))).read(*everything)  # labels are whole


def test_texts_take_part_in_the_fingerprint(tmp_path: Path) -> None:
    for name, arrays in (("without", ()), ("with", (Text.stored,))):
        write_folder(tmp_path / name, [3], arrays=arrays)
    fingerprints = {
        open_dataset(DataConfig(path=str(tmp_path / name)), condition).fingerprint()
        for name, condition in (("without", "label"), ("with", "label"), ("with", "text"))
    }
    assert len(fingerprints) == 2  # what a model does not read is nothing to it
    assert "arrays" not in json.loads((tmp_path / "without" / "manifest.json").read_text())


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "labels", [3])
    with pytest.raises(InputError, match=r"hold labels alone, and the condition reads 'text' \(float16 \[4, 8\]\)"):
        open_dataset(DataConfig(path=str(tmp_path / "labels")), "text")
    write_folder(tmp_path / "longer", [3], arrays=(RecordArray("text", "float16", (6, 8)),))
    with pytest.raises(InputError, match=r"hold 'text' \(float16 \[6, 8\]\), and the condition reads 'text'"):
        open_dataset(DataConfig(path=str(tmp_path / "longer")), "text")
    with pytest.raises(InputError, match=r"model.condition 'txt' is unknown.*text"):
        build_condition("txt", 3, has_null=True)
    with pytest.raises(InputError, match=r"condition is array 'text' of records, which no class stands for; draw with"):
        Text(3).choices(open_dataset(DataConfig(path=str(tmp_path / "labels"))).class_names)
