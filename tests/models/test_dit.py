import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_scale.errors import InputError
from dit_scale.models import DiT
from dit_scale.models.fused import add_and_norm
from tests.networks import fill
from tests.parity import assert_parity, load_tensors, load_tiny

SIZES: dict[str, Any] = {
    "latent_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 10,
}


def random_model(**changes: Any) -> DiT:
    """Return a small model in which no weight is zero, so that every input matters."""
    torch.manual_seed(0)
    model = DiT(**SIZES | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model


def inputs(num_samples: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(num_samples, 4, 8, 8, generator=generator)
    return latent, torch.tensor([0, 500, 999])[:num_samples], torch.tensor([0, 9, 10])[:num_samples]


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
def test_forward_as_published(name: str) -> None:
    tiny = load_tiny(name)
    output = tiny.model(tiny.io["x"], tiny.io["t"], tiny.io["y"])
    assert_parity(f"{name}_io out", output, tiny.io["out"])


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
def test_initial_positions_as_published(name: str) -> None:
    tiny = load_tiny(name)
    tiny.model.initialize_weights()
    assert_parity(f"{name}_weights pos_embed", tiny.model.pos_embed, load_tensors(f"{name}_weights")["pos_embed"])


def test_a_new_model_is_zero_and_its_blocks_the_identity() -> None:
    model = DiT(**SIZES)
    assert torch.count_nonzero(model(*inputs())) == 0
    tokens, conditioning = torch.randn(3, 16, 32), torch.randn(3, 32)
    for block in model.blocks:
        assert torch.equal(block(tokens, conditioning, "sdpa"), tokens)


def test_norms_are_plain_with_the_published_epsilon() -> None:
    tokens = 1e-3 * torch.randn(2, 16, 32)  # so small that epsilon, 1e-6, is as large as their variance
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    nothing = torch.zeros(2, 1, 32)
    same, normed = add_and_norm(tokens, None, None, shift=nothing, scale=nothing)
    assert torch.equal(same, tokens)
    torch.testing.assert_close(normed, expected)


def test_initial_spread_of_the_weights() -> None:
    torch.manual_seed(0)
    model = DiT(**SIZES | {"hidden_size": 256})
    assert model.t_embedder.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.05)
    # Xavier uniform (Glorot & Bengio, 2010, eq. 16): variance 2 / (fan_in + fan_out); a patch is one vector.
    expected = (2 / (4 * 2 * 2 + 256)) ** 0.5
    assert model.x_embedder.proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.05)


def test_bf16_weights_stay_close_to_fp32() -> None:
    model = random_model()
    latent, timestep, label = inputs()
    exact = model(latent, timestep, label)
    output = model.to(torch.bfloat16)(latent.to(torch.bfloat16), timestep, label)
    assert output.dtype == torch.bfloat16
    assert (output.float() - exact).norm() / exact.norm() < 0.05


def test_output_follows_the_weights_whatever_the_latent() -> None:
    latent, timestep, label = inputs()
    assert random_model().to(torch.bfloat16)(latent, timestep, label).dtype == torch.bfloat16
    assert random_model().double()(latent, timestep, label).dtype == torch.float64


def test_fp64_agrees_with_fp32() -> None:
    exact = random_model().double()(*inputs())
    torch.testing.assert_close(random_model()(*inputs()).double(), exact, rtol=1e-4, atol=1e-4)


def test_timesteps_may_be_integer_or_real() -> None:
    model = random_model()
    latent, timestep, label = inputs()
    assert torch.equal(model(latent, timestep, label), model(latent, timestep.double(), label))
    assert not torch.equal(model(latent, timestep, label), model(latent, timestep + 0.5, label))


def test_forward_draws_nothing_in_training_mode() -> None:
    model = random_model().train()
    state = torch.get_rng_state()
    assert torch.equal(model(*inputs()), model(*inputs()))
    assert torch.equal(torch.get_rng_state(), state)


def test_label_dropout_only_adds_a_row() -> None:
    with_null, without = random_model(), random_model(label_dropout=0.0)
    assert (with_null.null_label, without.null_label) == (10, None)
    assert with_null.y_embedder.embedding_table.num_embeddings == 11
    assert without.y_embedder.embedding_table.num_embeddings == 10
    latent, timestep, _ = inputs(2)
    with pytest.raises(IndexError):
        without(latent, timestep, torch.tensor([1, 10]))


def test_without_learned_sigma_the_output_has_the_latents_channels() -> None:
    assert random_model(learn_sigma=False)(*inputs()).shape == (3, 4, 8, 8)
    assert random_model(learn_sigma=True)(*inputs()).shape == (3, 8, 8, 8)


def test_tokens_enter_the_blocks_contiguous() -> None:
    seen = []
    model = random_model()
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].is_contiguous()))
    model(*inputs())
    assert seen == [True]


def test_xformers_on_a_cpu_is_refused_at_the_first_forward() -> None:
    model = random_model(attention="xformers")  # it may yet be moved to a GPU
    with pytest.raises(InputError, match="no operator for device 'cpu'"):
        model(*inputs())


def test_blocks_can_be_wrapped_from_outside() -> None:
    model = random_model()
    expected = model(*inputs())
    for block in model.blocks:
        # fullgraph: a graph break would be an error
        block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(model(*inputs()), expected)
    for block in model.blocks:
        inner = block.forward
        block.forward = lambda *arguments, inner=inner: torch.utils.checkpoint.checkpoint(
            inner, *arguments, use_reentrant=False
        )
    output = model(*inputs())
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert model.x_embedder.proj.weight.grad is not None


def test_hidden_states_are_the_tokens_that_leave_blocks_in_the_order_asked_for() -> None:
    model, left = random_model(depth=3), []
    for block in model.blocks:
        block.register_forward_hook(lambda *call: left.append(call[-1]))
    alone = model(*inputs())
    left.clear()
    output, (last, first) = model(*inputs(), hidden=(3, 1))
    assert isinstance(alone, Tensor)
    assert torch.equal(output, alone)
    assert last is left[2]
    assert first is left[0]
    assert first.shape == (3, 16, 32)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_loss_on_a_hidden_state_reaches_the_blocks_before_it(is_compiled: bool) -> None:
    torch._dynamo.reset()
    model = random_model(depth=3)
    if is_compiled:
        model.compile_blocks()
    for block in model.blocks:
        block.forward = functools.partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)
    _, (tokens,) = model(*inputs(), hidden=[2])
    tokens.square().sum().backward()
    has_gradient = [block.attn.qkv.weight.grad is not None for block in model.blocks]
    assert has_gradient == [True, True, False]


@pytest.mark.parametrize("asked", [0, 3, -1, "early_layer", "blocks.0"])
def test_hidden_states_of_no_block_are_refused(asked: int | str) -> None:
    with pytest.raises(InputError, match=f"hidden state {asked} is asked for and blocks are numbered 1 to 2"):
        random_model()(*inputs(), hidden=[1, asked])


def test_an_early_layer_is_a_final_layer_after_its_block_and_leaves_the_rest_as_it_was() -> None:
    torch.manual_seed(0)
    without = DiT(**SIZES | {"depth": 3})
    torch.manual_seed(0)
    model = DiT(**SIZES | {"depth": 3, "early_block": 2})
    names = list(without.state_dict())
    assert list(model.state_dict())[: len(names)] == names
    assert all(torch.equal(model.state_dict()[name], value) for name, value in without.state_dict().items())
    assert all(layer.weight.any() for layer in model.early_layer.modules() if isinstance(layer, torch.nn.Linear))
    fill(model, std=0.2)
    output, (tokens, early) = model(*inputs(), hidden=(2, "early_layer"))
    assert torch.equal(output, model(*inputs()))
    shorter = DiT(**SIZES | {"depth": 2})
    weights = {name.replace("early_layer", "final_layer"): value for name, value in model.state_dict().items()}
    shorter.load_state_dict({name: weights[name] for name in shorter.state_dict()})
    assert torch.equal(early, shorter(*inputs()))
    assert tokens.shape == (3, 16, 32)


def test_an_early_layer_of_a_network_with_a_head_stands_in_its_encoder() -> None:
    head = {"head_hidden_size": 48, "head_depth": 1, "head_num_heads": 4, "norm": "rmsnorm"}
    model = random_model(early_block=2, **head)
    _, (early,) = model(*inputs(), hidden=["early_layer"])
    assert early.shape == (3, 8, 8, 8)
    early.sum().backward()
    has_gradient = [block.attn.qkv.weight.grad is not None for block in model.blocks]
    assert has_gradient == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_size": 9}, "latent_size 9 is not a multiple of patch_size 2"),
        ({"num_heads": 3}, "hidden_size 32 must be a multiple of num_heads 3"),
        ({"hidden_size": 30, "num_heads": 3}, "hidden_size 30 must be .* of 4"),
        ({"label_dropout": 1.0}, r"label_dropout 1.0 is not in \[0, 1\)"),
        ({"attention": "xformer"}, "attention 'xformer' is unknown; did you mean 'xformers'"),
        ({"early_block": 3}, "early_block 3 is not one of 2 blocks; give 1 to 2, or 0 for none"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiT(**SIZES | changes)
