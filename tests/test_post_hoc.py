"""Averages made after training: what was kept comes back exactly, what was not to a small error."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dit_scale.checkpoint import Checkpoint, Description, Position, Retention, Saver, State, weights_of
from dit_scale.checkpoint.post_hoc import Profile, decay_at, gamma_of, power_kind
from dit_scale.distributed.fragments import Fragment
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError

WIDTHS = (0.05, 0.1)
WANTED = 0.075
UPDATES = 1000


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_an_exponent_has_the_width_that_was_asked_for(width: float) -> None:
    gamma = gamma_of(width)
    places = (np.arange(200_000) + 0.5) / 200_000
    profile = places**gamma / (places**gamma).sum()
    mean = (profile * places).sum()
    assert np.sqrt((profile * (places - mean) ** 2).sum()) == pytest.approx(width, rel=1e-3)


def test_a_product_of_profiles_is_its_integral() -> None:
    one, other = Profile(70.0, 3.0), Profile(100.0, 6.5)
    places = (np.arange(100_000) + 0.5) / 1000.0
    values = [
        np.where(places < p.updates, (p.gamma + 1) * places**p.gamma / p.updates ** (p.gamma + 1), 0.0)
        for p in (one, other)
    ]
    assert one.dot(other) == other.dot(one) == pytest.approx((values[0] * values[1]).sum() / 1000.0, rel=1e-3)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """Checkpoints of a random walk that keep two averages, and a third that only this test knows."""
    walk = torch.randn(UPDATES, 16, generator=torch.Generator().manual_seed(0)).cumsum(0)
    gammas = {width: gamma_of(width) for width in (*WIDTHS, WANTED)}
    averages = {width: torch.zeros(16, dtype=torch.float64) for width in gammas}
    saver = Saver(tmp_path, World(), Retention(newest=1, every_steps=100))
    for update, weights in enumerate(walk, 1):
        for width, gamma in gammas.items():
            averages[width].lerp_(weights.double(), 1.0 - decay_at(update, gamma))
        if update % 100 == 0:
            kinds = {"master": [weights]} | {power_kind(width): [averages[width].float()] for width in WIDTHS}
            state = State({"a": torch.Size([4, 4])}, [Fragment("a", 0, 16, 0, 0)], kinds, update)
            saver.save(Description(Position(update, update), {}, {}), state)
    saver.wait()
    return tmp_path, averages[WANTED].view(4, 4)


def test_an_average_that_was_not_kept(run: tuple[Path, torch.Tensor]) -> None:
    folder, wanted = run
    last = Checkpoint(folder / f"step-{UPDATES:08d}")
    found = weights_of(last, f"post-hoc-{WANTED}")["a"].double()
    apart = torch.linalg.vector_norm(weights_of(last, "master")["a"].double() - wanted)
    assert torch.linalg.vector_norm(found - wanted) < 0.01 * apart
    kept = weights_of(last, power_kind(WIDTHS[0]))["a"]
    assert torch.allclose(weights_of(last, f"post-hoc-{WIDTHS[0]}")["a"], kept, rtol=1e-4, atol=1e-4)


def test_mistakes_get_one_sentence(run: tuple[Path, torch.Tensor]) -> None:
    last = Checkpoint(run[0] / f"step-{UPDATES:08d}")
    with pytest.raises(InputError, match=r"width 0.5 .* is not above 0 and at most 0.28"):
        weights_of(last, "post-hoc-0.5")
    with pytest.raises(InputError, match="name no width"):
        weights_of(last, "post-hoc-wide")
    with pytest.raises(InputError, match=r"no weights 'ema'; choose one of master, ema-power-0.05, ema-power-0.1"):
        weights_of(last, "ema")
