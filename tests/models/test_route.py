"""Token routing in the network: who goes through which block, and what stands in the places of the others."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_scale.errors import InputError
from dit_scale.models import DiT, Route
from dit_scale.models.config import Projectors
from dit_scale.models.embeddings import grid_rotation
from tests.models.test_dit import SIZES, inputs, random_model

DEPTH, TOKENS = 5, 16
KEPT = torch.tensor([[0, 3, 7, 15], [1, 2, 3, 4], [8, 9, 14, 15]])
ALL = torch.arange(TOKENS).expand(3, TOKENS)


def routed_model(fill: Any, **changes: Any) -> DiT:
    return random_model(depth=DEPTH, route=Route(2, 4, fill), **changes)


def by_hand(model: DiT, kept: list[list[int]], dropped: tuple[int, ...] = ()) -> Tensor:
    """Return what routing makes of the inputs, an image and a token at a time; without its final layer."""
    latent, timestep, label = inputs()
    conditioning = model.t_embedder(timestep) + model.y_embedder(label)
    rotation = grid_rotation(16, 4, latent.device) if model.config.rope else None
    tokens = model.x_embedder(latent) + model.pos_embed
    entered = model.blocks[0](tokens, conditioning, "sdpa", rotation)
    images = []
    for i, places in enumerate(kept):
        inside, own = entered[i : i + 1, places], rotation and (rotation[0][places], rotation[1][places])
        for block in list(model.blocks)[1:4]:
            inside = block(inside, conditioning[i : i + 1], "sdpa", own)
        rows = list(entered[i]) if model.config.route.fill == "entered" else [model.route.mask_token] * TOKENS
        for place, row in zip(places if i not in dropped else [], inside[0], strict=False):
            rows[place] = row
        if model.config.route.fill == "learnt":
            rows = [
                model.route.fusion.weight @ torch.cat((row, old)) + model.route.fusion.bias
                for row, old in zip(rows, entered[i], strict=True)
            ]
        images.append(torch.stack(rows))
    return model.blocks[4](torch.stack(images), conditioning, "sdpa", rotation)


def last_tokens(model: DiT, **told: Any) -> Tensor:
    _, (tokens,) = model(*inputs(), hidden=(DEPTH,), **told)
    return tokens


@pytest.mark.parametrize(
    ("fill", "changes"),
    [("entered", {}), ("learnt", {}), ("entered", {"rope": True}), ("learnt", {"norm": "rmsnorm", "rope": True})],
)
def test_kept_tokens_go_through_the_routed_blocks_and_back_to_their_places(fill: str, changes: dict[str, Any]) -> None:
    model = routed_model(fill, **changes)
    found = last_tokens(model, kept_tokens=KEPT)
    torch.testing.assert_close(found, by_hand(model, KEPT.tolist()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", ["entered", "learnt"])
def test_an_image_whose_path_is_dropped_does_without_the_routed_blocks(fill: str) -> None:
    model, is_dropped = routed_model(fill), torch.tensor([False, True, False])
    found = last_tokens(model, kept_tokens=KEPT, path_dropped=is_dropped)
    torch.testing.assert_close(found, by_hand(model, KEPT.tolist(), dropped=(1,)), rtol=1e-4, atol=1e-4)
    everyone = last_tokens(model, path_dropped=is_dropped)
    torch.testing.assert_close(everyone, by_hand(model, ALL.tolist(), dropped=(1,)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", ["entered", "learnt"])
def test_without_a_kept_token_the_routed_blocks_do_not_run(fill: str) -> None:
    model, ran = routed_model(fill), []
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    found = last_tokens(model, kept_tokens=KEPT[:, :0])
    assert ran == [1, 5]
    dropped = last_tokens(model, kept_tokens=KEPT, path_dropped=torch.tensor([True] * 3))
    torch.testing.assert_close(found, dropped)


@pytest.mark.parametrize("fill", ["entered", "learnt"])
def test_all_tokens_kept_by_name_are_all_tokens(fill: str) -> None:
    model = routed_model(fill)
    torch.testing.assert_close(model(*inputs(), kept_tokens=ALL), model(*inputs()))


def test_a_head_follows_behind_the_route() -> None:
    head = {"head_hidden_size": 64, "head_depth": 1, "head_num_heads": 2, "rope": True}
    model, ran = routed_model("learnt", **head), []
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _, came, went, number=number: ran.append((number, tuple(went.shape))))
    model(*inputs(), kept_tokens=KEPT)
    encoder = [(1, (3, 16, 32)), *((number, (3, 4, 32)) for number in (2, 3, 4)), (5, (3, 16, 32))]
    assert ran == [*encoder, (6, (3, 16, 64))]
    torch.testing.assert_close(model(*inputs(), kept_tokens=ALL), model(*inputs()))


def test_a_route_with_nothing_learnt_is_the_network_without_one() -> None:
    plain, routed = random_model(depth=DEPTH), random_model(depth=DEPTH, route=Route(2, 4))
    assert list(plain.state_dict()) == list(routed.state_dict())
    assert torch.equal(plain(*inputs()), routed(*inputs()))


def test_a_new_network_makes_of_all_tokens_of_some_and_of_none_the_same() -> None:
    torch.manual_seed(0)
    plain = DiT(**SIZES | {"depth": DEPTH})
    torch.manual_seed(0)
    model = DiT(**SIZES | {"depth": DEPTH}, route=Route(2, 4, "learnt"))
    weights = model.state_dict()
    assert set(weights) - set(plain.state_dict()) == {
        "route.mask_token",
        "route.fusion.weight",
        "route.fusion.bias",
    }
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
    torch.nn.init.normal_(model.final_layer.linear.weight)  # which begins as zero, and all would be the same
    everything = model(*inputs())
    for kept in (KEPT, KEPT[:, :0]):
        torch.testing.assert_close(model(*inputs(), kept_tokens=kept), everything, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"kept_tokens": KEPT},
        {"path_dropped": torch.tensor([False] * 3)},
        {"path_dropped": torch.tensor([True] * 3)},
    ],
)
def test_every_parameter_has_a_gradient_whatever_is_routed(told: dict[str, Tensor]) -> None:
    """At ZeRO 3 one without any would be updated by that of the step before."""
    model = routed_model("learnt")
    model(*inputs(), **told).sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_learnt_token_is_left_as_it_is_where_all_tokens_stay() -> None:
    model = routed_model("learnt")
    model(*inputs()).sum().backward()
    assert model.route.mask_token.grad is not None
    assert torch.count_nonzero(model.route.mask_token.grad) == 0


def test_hidden_states_come_from_around_the_route_and_inside_where_all_tokens_are() -> None:
    model = routed_model("learnt")
    _, (first, last) = model(*inputs(), hidden=(1, 5), kept_tokens=KEPT)
    assert first.shape == last.shape == (3, TOKENS, 32)
    _, (inside,) = model(*inputs(), hidden=(4,))
    assert inside.shape == (3, TOKENS, 32)
    for number in (2, 3, 4):
        with pytest.raises(InputError, match=rf"hidden state {number} is asked for, but blocks 2 to 4 are routed"):
            model(*inputs(), hidden=(1, number), kept_tokens=KEPT)


def test_each_shape_is_compiled_once() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model, expected = routed_model("learnt"), routed_model("learnt")
    for block in model.blocks:
        block.forward = torch.compile(block.forward, dynamic=False, backend=count, fullgraph=True)
    for _ in range(2):
        for told in ({"kept_tokens": KEPT}, {}, {"kept_tokens": KEPT[:, :0]}):
            torch.testing.assert_close(model(*inputs(), **told), expected(*inputs(), **told))
    assert len(graphs) == 2


def test_a_network_without_a_route_takes_no_kept_tokens() -> None:
    for told in ({"kept_tokens": KEPT}, {"path_dropped": torch.tensor([False] * 3)}):
        with pytest.raises(InputError, match="this network has no route"):
            random_model()(*inputs(), **told)


def test_a_side_layer_between_routed_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="early_block 3 is one of blocks 2 to 4, which see only a part"):
        routed_model("entered", early_block=3)
    with pytest.raises(InputError, match="after_block 4 is one of blocks 2 to 4, which see only a part"):
        routed_model("entered", projectors=Projectors(after_block=4, widths=(8,)))
    aligned = routed_model("entered", projectors=Projectors(after_block=1, widths=(8,)))
    _, (features,) = aligned(*inputs(), hidden=("projectors.0",), kept_tokens=KEPT)
    assert features.shape == (3, TOKENS, 8)
    assert routed_model("entered", early_block=5)(*inputs(), kept_tokens=KEPT).shape == (3, 8, 8, 8)


@pytest.mark.parametrize("route", [Route(3, 2), Route(0, 2), Route(2, 6), Route(4)])
def test_a_route_that_does_not_fit_is_refused(route: Route) -> None:
    with pytest.raises(InputError, match="does not fit a network of 5 blocks; give"):
        random_model(depth=DEPTH, route=route)


def test_a_route_without_an_end_leaves_two_blocks_behind_it() -> None:
    assert Route(3).blocks(28) == range(3, 27)


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 128), (0.75, 64), (0.3, 179), (0.0, 256)])
def test_how_many_tokens_stay(ratio: float, kept: int) -> None:
    assert Route(3, ratio=ratio).num_kept(256) == kept


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_a_part_that_leaves_no_token_in_or_out_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=rf"routing\.ratio={ratio} keeps \d+ of 16 tokens"):
        random_model(depth=DEPTH, route=Route(2, 4, ratio=ratio))
