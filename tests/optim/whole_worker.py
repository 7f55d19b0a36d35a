"""Ranks that update matrices of which each has a flat part, beside matrices that are whole; run under torchrun.

Prints one JSON line on rank zero: how many ranks hold a piece of each matrix, what differs from whole ones, and the
most numbers that a rank sends in an update, counted and planned.
"""

import json
from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dit_scale.config import TrainSection
from dit_scale.distributed.fragments import Fragment, completed, laid_out
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.distributed.traffic import Traffic
from dit_scale.optim import WholeMatrices, build_optimizer, cut_flat, groups_of, whole_cost

SHAPES = {f"blocks.{index}.weight": torch.Size(shape) for index, shape in enumerate([(5, 7), (16, 6), (4, 4), (6, 16)])}
STEPS, DISCARDED, FILLED_UP = 4, 2, 3
CPU = torch.device("cpu")


def numbers(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def flat_part(owned: list[Fragment], whole: dict[str, Tensor]) -> Tensor:
    """Return this rank's part, filled up with zeros as DeepSpeed fills one up."""
    parts = [whole[part.name].flatten()[part.offset : part.offset + part.numel] for part in owned]
    return torch.cat([*parts, torch.zeros(FILLED_UP)])


def fragments_of(world: World) -> list[Fragment]:
    """Return this rank's part of the matrices as DeepSpeed cuts them."""
    names, seen, start, owned = list(SHAPES), Counter[int](), 0, []
    for rank, pieces in enumerate(cut_flat([shape.numel() for shape in SHAPES.values()], world.world_size)):
        for piece in pieces:
            if rank == world.rank:
                owned.append(Fragment(names[piece.parameter], seen[piece.parameter], piece.numel, 0, start))
                start += piece.numel
            seen[piece.parameter] += piece.numel
    return owned


def main() -> None:
    world = World.from_environment()
    set_threads(world, 1)
    with process_group(world, "cpu"):
        train, begin = TrainSection(optimizer="muon", weight_decay=0.1, muon_learning_rate=2e-3), numbers(0)
        bias = nn.Parameter(torch.ones(4))
        matrices = {name: nn.Parameter(value.clone()) for name, value in begin.items()}
        whole, cut = (build_optimizer(groups_of(train), {**matrices, "bias": bias}, 1e-4, CPU) for _ in range(2))
        owned = fragments_of(world)
        flat = nn.Parameter(flat_part(owned, begin))
        cut.param_groups[0]["params"] = [flat]
        cut.whole = WholeMatrices(owned, SHAPES)  # type: ignore[attr-defined]
        for step in range(STEPS):
            gradients = numbers(1 + step)
            if step == DISCARDED:
                gradients = {name: torch.full_like(value, torch.nan) for name, value in gradients.items()}
            for name, gradient in gradients.items():
                matrices[name].grad = gradient.clone()
            flat.grad = flat_part(owned, gradients)
            for optimizer in (whole, cut):
                optimizer.found_inf = torch.tensor(float(step == DISCARDED))  # type: ignore[attr-defined]
                optimizer.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
                with Traffic() as traffic:
                    optimizer.step()
        momentum = {name: whole.state[matrix]["momentum_buffer"] for name, matrix in matrices.items()}
        differs = []
        for kind, mine, expected in (
            ("weights", flat.detach(), matrices),
            ("momentum", cut.state[flat]["momentum_buffer"], momentum),
        ):
            assert not mine[-FILLED_UP:].any()
            parts = laid_out(owned, [part.of([mine]) for part in owned], SHAPES, "cpu")
            found = completed(parts, SHAPES)
            differs += [f"{kind} of {name}" for name, value in expected.items() if not torch.equal(found[name], value)]
        names_and_sent: list[tuple[list[str], int]] = [([], 0)] * world.world_size
        dist.all_gather_object(names_and_sent, ([part.name for part in owned], traffic.tallies["send"].num_bytes // 4))
    if world.is_rank_zero:
        holders = [sum(name in names for names, _ in names_and_sent) for name in SHAPES]
        sent = max(sent for _, sent in names_and_sent)
        planned = whole_cost(groups_of(train), begin, world.world_size).sent
        print(json.dumps({"holders": holders, "differs": differs, "sent": [sent, planned]}), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main()
