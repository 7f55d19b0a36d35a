"""Items shared among ranks: each once, batches cut alike, as many on each rank where that is asked for."""

import pytest

from dit_scale.distributed.runtime import World
from dit_scale.distributed.sharing import Share, shares

ITEMS = [10, 11, 12, 13, 14, 15, 16]


def of_all(ranks: int, size: int, **options: bool) -> list[list[Share]]:
    return [list(shares(ITEMS, size, World(rank, ranks), **options)) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_each_item_is_one_ranks_in_batches_that_do_not_depend_on_the_ranks(ranks: int, size: int) -> None:
    batches = sorted(share for mine in of_all(ranks, size) for share in mine)
    assert batches == of_all(1, size)[0]
    assert [item for share in batches for item in share.own] == ITEMS
    assert {len(share.filled) for share in batches} == {size}
    assert all(share.filled[: len(share.own)] == share.own for share in batches)


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_all_ranks_have_as_many_batches_where_work_is_collective(ranks: int) -> None:
    by_rank = of_all(ranks, 2, is_collective=True)
    assert {len(mine) for mine in by_rank} == {-(-4 // ranks)}
    assert sorted(item for mine in by_rank for share in mine for item in share.own) == ITEMS
    assert all(share.filled == [16, 16] for mine in by_rank for share in mine if not share.own)


def test_nothing_to_share() -> None:
    assert list(shares([], 2, World(), is_collective=True)) == []
