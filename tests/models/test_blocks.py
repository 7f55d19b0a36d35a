"""Blocks in all their variants: what they share with DiT's, and how a further one is chosen."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp

from dit_scale.errors import InputError
from dit_scale.models import DiT, blocks
from dit_scale.models.config import NetworkConfig
from dit_scale.models.embeddings import FourierEmbedding, grid_rotation, rotated
from dit_scale.models.linear import Linear
from tests.models.test_dit import SIZES, inputs, random_model

HEAD = {"head_hidden_size": 48, "head_depth": 2, "head_num_heads": 4}
LIGHTNING = {"norm": "rmsnorm", "mlp": "swiglu", "rope": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "lightning": LIGHTNING,
    "norms of queries and keys": {"qk_norm": True},
    "no shift": {"adaln_shift": False},
    "head": LIGHTNING | HEAD | {"time_embedding": "fourier"},
    "head of layer norms": HEAD | {"qk_norm": True, "adaln_shift": False},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_a_new_block_is_the_identity_and_a_new_network_gives_zero(changes: dict[str, Any]) -> None:
    model = DiT(**SIZES | changes)
    assert torch.count_nonzero(model(*inputs())) == 0
    for block in model.blocks:
        width = block.attn.proj.out_features
        tokens, conditioning = torch.randn(3, 16, width), torch.randn(3, 16, width)
        assert torch.equal(block(tokens, conditioning, "sdpa"), tokens)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_compiled_in_one_graph_a_stack_and_recomputed_it_is_the_same_network(changes: dict[str, Any]) -> None:
    torch._dynamo.reset()
    expected = random_model(**changes)(*inputs())
    model, graphs = random_model(**changes), []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for block in model.blocks:
        compiled = torch.compile(block.forward, backend=note, fullgraph=True, dynamic=False)
        block.forward = functools.partial(torch.utils.checkpoint.checkpoint, compiled, use_reentrant=False)
    output = model(*inputs())
    torch.testing.assert_close(output, expected)
    assert len(graphs) == len(model.config.stacks)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_without_kernels_a_variant_has_its_derivative(changes: dict[str, Any]) -> None:
    model = random_model(**changes).double()
    model.turn_off_kernels()
    latent, _, label = inputs()
    latent, time = latent.double(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    direction = torch.ones_like(latent)
    _, slope = jvp(lambda x: model(x, time, label), (latent,), (direction,))
    step = 1e-5
    differences = model(latent + step * direction, time, label) - model(latent - step * direction, time, label)
    torch.testing.assert_close(slope, differences / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_one_conditioning_for_all_tokens_is_the_same_one_for_each(norm: str) -> None:
    block = random_model(norm=norm, adaln_shift=norm == "layernorm").blocks[0]
    tokens, conditioning = torch.randn(3, 16, 32), torch.randn(3, 32)
    of_each = conditioning[:, None].expand(3, 16, 32)
    torch.testing.assert_close(block(tokens, of_each, "sdpa"), block(tokens, conditioning, "sdpa"))
    other = torch.cat([of_each[:, :1] + 1, of_each[:, 1:]], dim=1)
    assert not torch.allclose(block(tokens, other, "sdpa")[:, 0], block(tokens, of_each, "sdpa")[:, 0])


def test_tokens_bring_their_own_rotation_when_only_some_go_through_a_block() -> None:
    block = random_model(**LIGHTNING).blocks[0]
    rotation = grid_rotation(16, 4, torch.device("cpu"))
    tokens, conditioning = torch.randn(2, 16, 32), torch.randn(2, 32)
    kept = torch.tensor([[0, 3, 7], [2, 5, 15]])
    some = tokens.gather(1, kept[:, :, None].expand(-1, -1, 32))  # [N, K, D]
    cosine, sine = rotation
    output = block(some, conditioning, "sdpa", (cosine[kept], sine[kept]))
    for image in range(2):
        alone = block(
            tokens[image : image + 1, kept[image]],
            conditioning[image : image + 1],
            "sdpa",
            (cosine[kept[image]], sine[kept[image]]),
        )
        torch.testing.assert_close(output[image : image + 1], alone)


def test_products_of_rotated_queries_and_keys_depend_on_distances_alone() -> None:
    rotation = grid_rotation(16, 4, torch.device("cpu"))
    query, key = (torch.randn(16).expand(1, 16, 1, 16) for _ in range(2))
    products = (rotated(query, rotation)[0, :, 0] @ rotated(key, rotation)[0, :, 0].T).view(4, 4, 4, 4)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    assert not torch.allclose(products[0, 0, 1, 2], products[0, 0, 2, 1])


def test_hidden_states_of_a_head_are_numbered_after_the_encoders() -> None:
    model = random_model(**VARIANTS["head"])
    output, (last, second) = model(*inputs(), hidden=[4, 2])
    assert torch.equal(output, model(*inputs()))
    assert (last.shape, second.shape) == ((3, 16, 48), (3, 16, 32))
    with pytest.raises(InputError, match="blocks are numbered 1 to 4"):
        model(*inputs(), hidden=[5])


def test_random_frequencies_are_saved_and_stay_in_fp32() -> None:
    model = random_model(**VARIANTS["head"])
    table = model.t_embedder.W.clone()
    assert table.std().item() == pytest.approx(1.0, rel=0.2)
    assert "t_embedder.W" in model.state_dict()
    assert "t_embedder.W" not in dict(model.named_parameters())
    for moved in (model.to(torch.bfloat16), model.float(), model.double(), model.half()):
        assert isinstance(moved.t_embedder, FourierEmbedding)
        assert torch.equal(moved.t_embedder.W, table)
    assert model.t_embedder(torch.tensor([0.5])).dtype == torch.float16


def test_initial_weights_of_a_network_with_a_head_are_pytorchs_own() -> None:
    torch.manual_seed(0)
    model = DiT(**SIZES | VARIANTS["head"] | {"hidden_size": 64})
    weight = model.blocks[0].attn.qkv.weight  # uniform in +-1/sqrt(fan_in), where Xavier's would be wider
    assert weight.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)
    assert torch.count_nonzero(model.blocks[0].attn.qkv.bias) > 0
    assert torch.count_nonzero(model.s_embedder.proj.bias) == 0
    assert torch.equal(model.blocks[0].norm1.weight, torch.ones(64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rms"}, "norm 'rms' is unknown; did you mean 'rmsnorm'"),
        ({"rope": True, "num_heads": 16}, "over num_heads 16 is 2 numbers a head, and rope needs a multiple of 4"),
        ({"head_depth": 2}, "head_hidden_size=null, head_depth=2, head_num_heads=null; give all"),
        (HEAD | {"head_depth": 0}, "head_depth=0, head_num_heads=4; give all"),
        (HEAD | {"head_num_heads": 5}, "head_hidden_size 48 must be a multiple of head_num_heads 5"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetworkConfig(**SIZES | changes)


class GeGLU(nn.Module):
    """What a further variant costs: these lines, its name in the table and in two ``Literal``s (CONTRIBUTING.md)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.w12 = Linear(config.hidden_size, 2 * config.hidden_size)
        self.w3 = Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        gating, gated = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.gelu(gating) * gated)


def test_a_further_feed_forward_is_a_class_and_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.FEED_FORWARDS, "gelu", GeGLU)
    model = random_model()
    assert isinstance(model.blocks[1].mlp, GeGLU)
    model(*inputs()).sum().backward()
    assert model.blocks[0].mlp.w12.weight.grad is not None
