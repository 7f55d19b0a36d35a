"""What frozen encoders cost is what PyTorch counts of them, and the plan holds it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dit_scale.alignment import outline_of
from dit_scale.config import Config, load_config
from dit_scale.diffusion import build_objective, total
from dit_scale.latents import LatentSpec
from dit_scale.models import Projectors, build_model
from dit_scale.parameters import num_parameters
from dit_scale.planning.choices import model_on_meta, setup_of
from dit_scale.planning.flops import training_flops_per_image
from dit_scale.planning.frozen import NO_ENCODERS, frozen_of
from dit_scale.planning.memory import TrainingSetup, estimate_memory
from dit_scale.training.alignment import Alignment
from dit_scale.training.loss import LossFunction
from tests.alignment.encoders import KINDS, crops, save_encoder
from tests.alignment.test_projectors import Fixed
from tests.networks import kept_bytes


def test_products_of_a_frozen_encoder_are_those_of_the_real_one(tmp_path: Path) -> None:
    names = tuple(str(tmp_path / kind) for kind in KINDS)
    counted = 0
    for kind, name in zip(KINDS, names, strict=True):
        save_encoder(kind, tmp_path / kind)
        encoder = outline_of(name).load().fit(4)
        with FlopCounterMode(display=False) as counter:
            encoder(crops(1))
        assert frozen_of((name,), 4).flops == counter.get_total_flops() > 0
        assert frozen_of((name,), 4).parameters == num_parameters(encoder)
        assert frozen_of((name,), 4).widest >= 16 * 40  # the MLP
        counted += counter.get_total_flops()
    assert frozen_of(names, 4).flops == counted
    assert frozen_of((), 4) == NO_ENCODERS


def test_the_plan_of_a_run_holds_projectors_and_encoders(tmp_path: Path) -> None:
    save_encoder("dinov2", tmp_path / "dinov2")
    plain = load_config(Config, None, ["run_dir=r", "data.path=d", "model.name=DiT-S/2", "engine.precision=fp32"])
    alignment = replace(plain.alignment, encoders=(str(tmp_path / "dinov2"),), projector_width=100)
    aligned = replace(plain, alignment=alignment)
    models = [model_on_meta(config, LatentSpec(4, 8), 3) for config in (plain, aligned)]
    projector = (384 + 1) * 100 + (100 + 1) * 100 + (100 + 1) * 24
    assert num_parameters(models[1]) - num_parameters(models[0]) == projector
    products = 16 * (384 * 100 + 100 * 100 + 100 * 24)
    flops = [training_flops_per_image(model) for model in models]
    assert flops[1] - flops[0] == 2 * 3 * products  # forward, and twice that backward
    setups = [setup_of(config, model, 1, on_gpu=False) for config, model in zip((plain, aligned), models, strict=True)]
    without, beside = (estimate_memory(model, setup) for model, setup in zip(models, setups, strict=True))
    assert without.encoders == without.encoder_workspace == 0
    assert beside.encoders == 4 * frozen_of(alignment.encoders, 4).parameters > 0
    kept = 4 * setups[1].micro_batch_size * 16 * (2 * 2 * 100 + 24)  # what the two SiLU and three layers keep, at least
    assert beside.activations - without.activations >= kept
    assert torch.device("meta") == models[1].pos_embed.device


def test_activations_of_an_aligned_loss_are_what_autograd_keeps() -> None:
    images, widths = 2, (768, 100)
    projectors = Projectors(after_block=2, widths=widths, width=512)
    model = build_model("DiT-S/2", depth=3, latent_size=32, num_classes=10, projectors=projectors)
    latents = LatentSpec(channels=4, size=32)
    alignment = Alignment([Fixed(torch.randn(images, 256, width)) for width in widths], 0.5, 0.0)  # type: ignore
    loss_function = LossFunction(build_objective("gaussian"), latents, 0, 0.1, model.condition, (alignment,))
    arguments = (torch.randn(images, *latents.moments_shape), torch.zeros(images, dtype=torch.long))
    kept = kept_bytes(model, lambda: total(loss_function(model, *arguments, torch.arange(images), crops(images))))
    setup = TrainingSetup(images, bytes_per_number=4, on_gpu=False)
    assert estimate_memory(model, setup).activations == pytest.approx(kept, rel=0.01)
