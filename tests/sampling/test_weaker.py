"""What guides a drawing: the weaker model of each kind, by the setting's name, against loops written by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.diffusion import build_objective
from dit_scale.draws import Stream
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, Route
from dit_scale.sampling import SamplingSettings, sample_latents
from tests.networks import fill

LATENTS = LatentSpec(4, 8)
LABELS, INDICES = torch.tensor([0, 1, 2]), torch.arange(3)
STEPS, SCALE = 4, 2.5


def small(**settings: object) -> DiT:
    sizes = {"latent_size": 8, "patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = DiT(**sizes | settings)
    fill(model, std=0.2)
    return model


def drawn(model: DiT, **settings: object) -> Tensor:
    """Return latents by Euler of a flow."""
    how = SamplingSettings(solver="euler", num_sampling_steps=STEPS, **settings)  # type: ignore[arg-type]
    how.check(build_objective("flow"), model)
    return sample_latents(model, build_objective("flow"), LATENTS, LABELS, INDICES, how)


@torch.no_grad()
def by_hand(strong, weak) -> Tensor:  # type: ignore[no-untyped-def]
    """Follow ``weak + SCALE * (strong - weak)``, each ``(latent, time as SiT counts it) -> output``, from noise on."""
    latent = draws.normal(0, Stream.INITIAL_NOISE, INDICES, LATENTS.shape)
    for step in range(STEPS):
        time = torch.full((3,), step / STEPS)
        weaker = weak(latent, time)[:, :4]
        latent = latent + (weaker + SCALE * (strong(latent, time)[:, :4] - weaker)) / STEPS
    return latent


def test_the_null_label_guides_where_nothing_else_is_asked_for() -> None:
    model = small()
    batches: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    found = drawn(model, cfg_scale=SCALE)
    assert batches == [6] * STEPS
    nulls = torch.full_like(LABELS, 3)
    expected = by_hand(lambda x, t: model(x, t, LABELS), lambda x, t: model(x, t, nulls))
    torch.testing.assert_close(found, expected)
    assert SamplingSettings(cfg_scale=SCALE).described(build_objective("flow")).get("guide_by") is None
    batches.clear()
    drawn(model)
    assert batches == [3] * STEPS


@pytest.mark.parametrize("settings", [{"learn_sigma": True}, {"learn_sigma": False, "label_dropout": 0.0}])
def test_the_early_layer_guides_in_one_pass_a_step(settings: dict[str, object]) -> None:
    model = small(early_block=1, **settings)
    batches: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    found = drawn(model, cfg_scale=SCALE, guide_by="early")
    assert batches == [3] * STEPS
    hook.remove()

    def early(latent: Tensor, time: Tensor) -> Tensor:
        return model(latent, time, LABELS, hidden=("early_layer",))[1][0]

    torch.testing.assert_close(found, by_hand(lambda x, t: model(x, t, LABELS), early))
    with pytest.raises(InputError, match="guide_by early needs a network with a second final layer"):
        drawn(small(), cfg_scale=SCALE, guide_by="early")


def test_a_model_without_a_null_label_is_refused() -> None:
    with pytest.raises(InputError, match=r"cfg_scale 2\.5 needs a null label"):
        drawn(small(label_dropout=0.0), cfg_scale=SCALE)


def test_another_network_guides_with_the_same_labels() -> None:
    strong, weak = small(), small(depth=1, learn_sigma=False, label_dropout=0.0)
    how = SamplingSettings(solver="euler", num_sampling_steps=STEPS, cfg_scale=SCALE, guide_by="runs/weak")
    found = sample_latents(strong, build_objective("flow"), LATENTS, LABELS, INDICES, how, other=weak)
    expected = by_hand(lambda x, t: strong(x, t, LABELS), lambda x, t: weak(x, t, LABELS))
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="guide_by 'nul' is unknown; did you mean 'null'"):
        sample_latents(strong, build_objective("flow"), LATENTS, LABELS, INDICES, replace(how, guide_by="nul"))


@pytest.mark.parametrize("has_null", [True, False])
def test_fewer_tokens_in_the_routed_blocks_guide_and_are_drawn_by_seed_and_image_alone(has_null: bool) -> None:
    model = small(route=Route(1, 1, "learnt", 0.75), label_dropout=0.1 if has_null else 0.0)
    weak = torch.full_like(LABELS, 3) if has_null else LABELS
    kept = draws.subset(0, Stream.ROUTING, INDICES, 16, 4)
    found = drawn(model, cfg_scale=SCALE, guide_by="routed")
    expected = by_hand(lambda x, t: model(x, t, LABELS), lambda x, t: model(x, t, weak, kept_tokens=kept))
    torch.testing.assert_close(found, expected)
    how = SamplingSettings(solver="euler", num_sampling_steps=STEPS, cfg_scale=SCALE, guide_by="routed")
    alone = sample_latents(model, build_objective("flow"), LATENTS, LABELS[2:], INDICES[2:], how)
    torch.testing.assert_close(alone, found[2:])
    assert how.described(build_objective("flow"))["guide_by"] == "routed"


def test_the_network_without_its_routed_blocks_guides_and_they_do_not_run() -> None:
    model = small(route=Route(1, 1, "learnt"))
    nulls, none = torch.full_like(LABELS, 3), torch.zeros(3, 0, dtype=torch.long)
    runs: list[int] = []
    hook = model.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    found = drawn(model, cfg_scale=SCALE, guide_by="dropped")
    assert len(runs) == STEPS
    hook.remove()
    expected = by_hand(lambda x, t: model(x, t, LABELS), lambda x, t: model(x, t, nulls, kept_tokens=none))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("guide_by", ["routed", "dropped"])
def test_a_model_without_a_route_has_no_fewer_tokens_to_guide_by(guide_by: str) -> None:
    with pytest.raises(InputError, match=f"guide_by {guide_by} needs a network that was trained with a route"):
        drawn(small(), cfg_scale=SCALE, guide_by=guide_by)
