"""Features are those of the published networks, fed as REPA feeds them; what is no encoder is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_scale.alignment import digest_of, outline_of, resample_positions
from dit_scale.alignment.sources import _published
from dit_scale.classifier import load_classifier
from dit_scale.errors import InputError
from tests.alignment.encoders import KINDS, WIDTH, crops, save_encoder

GRID = 4
IMAGENET = [(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)]


def prepared(images: Tensor, side: int, means: Any, deviations: Any) -> Tensor:
    """Return images as REPA prepares them, a channel at a time."""
    channels = [(images[:, c].double() / 255 - means[c]) / deviations[c] for c in range(3)]
    pixels = torch.stack(channels, dim=1).float()
    return F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False, antialias=False)


def table_of(positions: Tensor, class_tokens: int) -> Tensor:
    """Return positions [K + S², D] on the grid, as timm resamples them: a channel at a time, with antialiasing."""
    side = math.isqrt(len(positions) - class_tokens)
    columns = []
    for channel in positions.unbind(dim=1):
        image = channel[class_tokens:].view(1, 1, side, side)
        resized = F.interpolate(image, size=(GRID, GRID), mode="bicubic", align_corners=False, antialias=True)
        columns.append(torch.cat((channel[:class_tokens], resized.flatten())))
    return torch.stack(columns, dim=1)


def dinov2(network: Any, images: Tensor) -> Tensor:
    """Compute DINOv2's tokens after its last norm step by step, with or without registers."""
    parts = network.embeddings
    patches = parts.patch_embeddings(prepared(images, 14 * GRID, *IMAGENET))
    table = table_of(parts.position_embeddings[0], 1)
    first = (parts.cls_token + table[:1]).expand(len(images), -1, -1)
    registers = [parts.register_tokens.expand(len(images), -1, -1)] if hasattr(parts, "register_tokens") else []
    tokens = torch.cat((first, *registers, patches + table[1:]), dim=1)
    for layer in network.encoder.layer:
        tokens = layer(tokens)
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    return network.layernorm(tokens)[:, -GRID * GRID :]


def dinov3(network: Any, images: Tensor) -> Tensor:
    pixels = prepared(images, 16 * GRID, *IMAGENET)
    tokens, rotation = network.embeddings(pixels), network.rope_embeddings(pixels)
    for layer in network.layer:
        tokens = layer(tokens, position_embeddings=rotation)
    return network.norm(tokens)[:, -GRID * GRID :]


def siglip(network: Any, images: Tensor) -> Tensor:
    vision = network.vision_model
    half = (0.5, 0.5, 0.5)
    patches = vision.embeddings.patch_embedding(prepared(images, 16 * GRID, half, half)).flatten(2).transpose(1, 2)
    tokens = patches + table_of(vision.embeddings.position_embedding.weight, 0)
    return vision.post_layernorm(vision.encoder(inputs_embeds=tokens).last_hidden_state)


def mae(network: Any, images: Tensor) -> Tensor:
    parts = network.vit.embeddings
    pixels = prepared(images, 16 * GRID, *IMAGENET)
    table = table_of(parts.position_embeddings[0], 1)
    patches = parts.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2) + table[1:]
    tokens = torch.cat(((parts.cls_token + table[:1]).expand(len(images), -1, -1), patches), dim=1)
    return network.vit.layernorm(network.vit.encoder(tokens).last_hidden_state)[:, 1:]


BY_HAND = {"dinov2": dinov2, "dinov2_with_registers": dinov2, "dinov3_vit": dinov3, "siglip": siglip, "vit_mae": mae}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [64, 40])
def test_features_are_the_published_networks(kind: str, side: int, tmp_path: Path) -> None:
    network = save_encoder(kind, tmp_path / kind)
    state = torch.random.get_rng_state()
    loaded = outline_of(str(tmp_path / kind)).load()
    encoder = loaded.fit(GRID)
    found = encoder(crops(side=side))
    assert torch.equal(torch.random.get_rng_state(), state), "nothing is drawn"
    with torch.no_grad():
        expected = BY_HAND[kind](network, crops(side=side))
    assert found.shape == (2, GRID**2, WIDTH) and loaded.outline.width == WIDTH
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std(dim=1).min() > 1e-3, "places differ"
    assert not any(parameter.requires_grad for parameter in encoder.parameters()) and not encoder.network.training


def test_dinov2s_own_resampling_would_be_another(tmp_path: Path) -> None:
    network = save_encoder("dinov2", tmp_path / "dinov2")
    pixels = prepared(crops(), 14 * GRID, *IMAGENET)
    with torch.no_grad():
        own = network(pixels).last_hidden_state[:, 1:]
        ours = outline_of(str(tmp_path / "dinov2")).load().fit(GRID)(crops())
    assert (own - ours).norm() / ours.norm() > 0.01


def test_a_table_of_the_right_size_stays_as_it_is() -> None:
    table = torch.randn(1, 1 + GRID**2, 3)
    assert resample_positions(table, 1, GRID) is table
    assert resample_positions(table, 1, 6).shape == (1, 37, 3)
    assert torch.equal(resample_positions(table, 1, 6)[:, :1], table[:, :1])


def test_bf16_rounds_the_network_and_not_its_input(tmp_path: Path) -> None:
    save_encoder("dinov2", tmp_path / "dinov2")
    loaded = outline_of(str(tmp_path / "dinov2")).load()
    exact, rounded = loaded.fit(GRID)(crops()), loaded.fit(GRID).place("cpu", torch.bfloat16)
    assert rounded.mean.dtype == torch.float32
    found = rounded(crops())
    assert found.dtype == torch.bfloat16
    assert 0 < (found.float() - exact).norm() / exact.norm() < 0.1


def test_the_bundled_classifier_gives_a_feature_at_each_place() -> None:
    outline = outline_of("efficientnet")
    loaded = outline.load()
    found = loaded.fit(2)(crops(1))
    assert found.shape == (1, 4, outline.width)
    network = load_classifier("x", "")[0].eval()
    pixels = prepared(crops(1), 64, [127 / 255] * 3, [128 / 255] * 3)
    with torch.no_grad():
        expected = network.extract_features(pixels)  # [1, E, 2, 2]
    for place in range(4):
        torch.testing.assert_close(found[0, place], expected[0, :, place // 2, place % 2], rtol=1e-4, atol=1e-4)
    assert digest_of(loaded.network) == digest_of(outline_of("efficientnet").load().network)


def test_a_digest_is_of_weights_and_not_of_files(tmp_path: Path) -> None:
    network = save_encoder("dinov2", tmp_path / "one")
    network.save_pretrained(tmp_path / "two", safe_serialization=False)
    save_encoder("dinov2", tmp_path / "other", seed=1)
    one, two, other = (digest_of(outline_of(str(tmp_path / name)).load().network) for name in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet", "of a kind that alignment does not know, by the model_type of its config.json: resnet; give one of"),
        ("empty", "by the model_type of its config.json: not named; give one of these: dinov2, dinov2_with_registers"),
        ("absent", "is neither a folder of this machine nor a hub name; give a hub name such as facebook/dinov2-base"),
        ("lacking", "does not fit its own config.json (missing: encoder.layer.1.attention."),
    ],
)
def test_what_is_no_encoder_is_refused(name: str, sentence: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    if name == "resnet":
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    elif name == "empty":
        folder.mkdir()
    elif name == "lacking":
        save_encoder("dinov2", folder, num_hidden_layers=1)
        config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 2}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        outline_of(str(folder)).load()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/nothing' cannot be loaded \(it is not in the hub's cache on this"):
        outline_of("nobody/nothing")
    outline = outline_of("facebook/dinov2-large")  # enough to plan
    assert (outline.width, outline.config.num_hidden_layers, outline.config.patch_size) == (1024, 24, 14)
    with pytest.raises(InputError, match=r"dinov2-large' cannot be loaded \(it is not in the hub's cache"):
        outline.load()
    assert _published("facebook/dinov2-tiny") is None


def test_without_transformers_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers, .* pip install 'dit_scale\[align\]', or give"):
        outline_of(str(tmp_path))
