"""Contrastive flow matching: the other image is the same one however a batch is split."""

import pytest
import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.conditioning import Labels
from dit_scale.config import Config, TrainSection, load_config
from dit_scale.diffusion import FlowMatching, total
from dit_scale.draws import Stream
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec, sample_latent
from dit_scale.training.contrastive import Contrast
from dit_scale.training.loss import LossFunction
from dit_scale.zero.batches import plan_batches

LATENTS = LatentSpec(channels=2, size=4)
COUNT = 12
MOMENTS = torch.randn(COUNT, *LATENTS.moments_shape, generator=torch.Generator().manual_seed(0))
LABELS, POSITIONS = torch.zeros(COUNT, dtype=torch.long), torch.arange(COUNT) + 2 * COUNT


def network(noised: Tensor, time: Tensor, label: Tensor) -> Tensor:
    return torch.tanh(noised * (1 + time[:, None, None, None].float()))


def loss_function(flow: FlowMatching, weight: float = 0.05) -> LossFunction:
    return LossFunction(flow, LATENTS, 7, 0.0, Labels(3), (Contrast(flow, weight),))


@pytest.mark.parametrize("flow", [FlowMatching(), FlowMatching(time_at_data=0), FlowMatching(prediction="x0")])
def test_the_distance_is_to_the_neighbours_velocity(flow: FlowMatching) -> None:
    terms = loss_function(flow)(network, MOMENTS, LABELS, POSITIONS)
    noise = draws.normal(7, Stream.NOISE, POSITIONS, LATENTS.shape)
    latent = sample_latent(MOMENTS, draws.normal(7, Stream.POSTERIOR, POSITIONS, LATENTS.shape), LATENTS)
    time = flow.times_from_uniform(draws.uniform(7, Stream.TIME, POSITIONS))
    t = time[:, None, None, None].float()
    velocity = flow.velocity(lambda x, told: network(x, told, LABELS), (1 - t) * latent + t * noise, time)
    for i in range(COUNT):
        other = (noise - latent)[i ^ 1]
        torch.testing.assert_close(terms["contrastive"].value[i], ((velocity[i] - other) ** 2).mean())
    torch.testing.assert_close(total(terms), terms["mse"].value - 0.05 * terms["contrastive"].value)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("micro", [2, 3, 4, 5, 100])
def test_no_split_changes_an_images_loss(world_size: int, micro: int) -> None:
    whole = loss_function(FlowMatching())(network, MOMENTS, LABELS, POSITIONS)
    plan = plan_batches(TrainSection(global_batch_size=COUNT, micro_batch_size_per_gpu=micro), world_size, 2)
    size, found = plan.batch_size_per_rank, []
    assert plan.gradient_accumulation_steps == len(plan.micro_batches)
    for rank in range(world_size):
        for part in plan.micro_batches:
            assert 0 < part.stop - part.start <= micro
            images = slice(rank * size + part.start, rank * size + part.stop)
            terms = loss_function(FlowMatching())(network, MOMENTS[images], LABELS[images], POSITIONS[images])
            found.append(terms["contrastive"].value)
    torch.testing.assert_close(torch.cat(found), whole["contrastive"].value, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("size", "micro", "world_size", "sentence"),
    [
        (6, 4, 2, "leaves 3 images a rank, but .* 2 neighbouring images; use a multiple of 4, or diffusion.contrast"),
        (8, 1, 2, "micro_batch_size_per_gpu=1 parts images, .*; give 2 or more, or diffusion.contrastive_weight=0"),
        (6, 4, 4, "does not divide over 4 ranks"),
    ],
)
def test_a_split_that_parts_neighbours_is_refused(size: int, micro: int, world_size: int, sentence: str) -> None:
    train = TrainSection(global_batch_size=size, micro_batch_size_per_gpu=micro)
    with pytest.raises(InputError, match=sentence):
        plan_batches(train, world_size, 2)


def test_what_is_compared_stays_together_only_where_it_is() -> None:
    given = ["run_dir=r", "data.path=d", "diffusion.name=flow"]
    assert load_config(Config, None, given).diffusion.images_together == 1
    assert load_config(Config, None, [*given, "diffusion.contrastive_weight=0.05"]).diffusion.images_together == 2
    with pytest.raises(InputError, match=r"contrastive_weight=1\.0 is out of range"):
        load_config(Config, None, [*given, "diffusion.contrastive_weight=1"])
    with pytest.raises(InputError, match=r"contrastive_weight=0\.05 has no effect with diffusion.name=gaussian"):
        load_config(Config, None, ["run_dir=r", "data.path=d", "diffusion.contrastive_weight=0.05"])
