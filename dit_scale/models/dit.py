"""The Diffusion Transformer with adaLN-Zero blocks (Peebles & Xie, arXiv 2212.09748).

N samples of C x S x S latents, patches of P x P, T = (S/P)² tokens of width D.
"""

import torch
from torch import Tensor, nn

from dit_scale.errors import InputError
from dit_scale.models.attention import attention, check_backend, choose_backend
from dit_scale.models.embeddings import LabelEmbedding, PatchEmbedding, TimestepEmbedding, sincos_positions
from dit_scale.models.fused import add_and_norm, linear_gelu
from dit_scale.models.linear import Linear, use_fp8


def _modulation(hidden_size: int, num_vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, num_vectors * hidden_size))


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.proj = Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor, backend: str) -> Tensor:
        """Map tokens [N, T, D] to [N, T, D]."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # [N, T, 3, H, D/H]
        query, key, value = qkv.unbind(dim=2)  # 3 x [N, T, H, D/H]
        mixed = attention(query, key, value, backend)  # [N, T, H, D/H]
        return self.proj(mixed.flatten(2))  # [N, T, D]


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, hidden_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.fc2 = Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [N, T, D] to [N, T, D]."""
        wide = linear_gelu(self.fc1, tokens)  # [N, T, mlp_ratio * D]
        return self.fc2(wide)  # [N, T, D]


class Block(nn.Module):
    """A transformer block with adaptive LayerNorm and zero-initialised gates (figure 3, adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = SelfAttention(hidden_size, num_heads)
        self.mlp = FeedForward(hidden_size, mlp_ratio)
        self.adaLN_modulation = _modulation(hidden_size, num_vectors=6)

    def forward(self, tokens: Tensor, conditioning: Tensor, backend: str) -> Tensor:
        """Map tokens [N, T, D] under ``conditioning`` [N, D] to [N, T, D]; ``backend`` is attention's."""
        modulation = self.adaLN_modulation(conditioning)[:, None]  # [N, 1, 6D]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # 6 x [N, 1, D]
        tokens, modulated = add_and_norm(tokens, None, None, shift1, scale1)
        tokens, modulated = add_and_norm(tokens, self.attn(modulated, backend), gate1, shift2, scale2)
        return tokens + gate2 * self.mlp(modulated)


class FinalLayer(nn.Module):
    """Map each token to the numbers of its patch."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self.adaLN_modulation = _modulation(hidden_size, num_vectors=2)

    def forward(self, tokens: Tensor, conditioning: Tensor) -> Tensor:
        """Map tokens [N, T, D] under ``conditioning`` [N, D] to patches [N, T, P*P*C_out]."""
        shift, scale = self.adaLN_modulation(conditioning)[:, None].chunk(2, dim=-1)  # 2 x [N, 1, D]
        _, modulated = add_and_norm(tokens, None, None, shift, scale)
        return self.linear(modulated)  # [N, T, P*P*C_out]


class DiT(nn.Module):
    """A Diffusion Transformer under the published parameter names.

    ``label_dropout`` only adds the row ``null_label`` to the label table: the caller substitutes that label,
    and ``forward`` draws nothing. With ``learn_sigma`` the output has twice the channels of the latent.
    """

    def __init__(
        self,
        *,
        latent_size: int,
        patch_size: int,
        in_channels: int = 4,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_classes: int,
        label_dropout: float = 0.1,
        learn_sigma: bool = True,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        _check_sizes(latent_size, patch_size, hidden_size, num_heads, label_dropout)
        if int(hidden_size * mlp_ratio) < 1:
            raise InputError(f"mlp_ratio {mlp_ratio:g} of hidden_size {hidden_size} is an MLP of width 0; give more")
        check_backend(attention)
        self.attention = attention
        self.is_compiled = False
        self.latent_size, self.patch_size, self.in_channels = latent_size, patch_size, in_channels
        self.hidden_size, self.depth, self.num_heads, self.mlp_ratio = hidden_size, depth, num_heads, mlp_ratio
        self.num_classes, self.label_dropout, self.learn_sigma = num_classes, label_dropout, learn_sigma
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.grid_side = latent_size // patch_size

        self.x_embedder = PatchEmbedding(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedding(hidden_size)
        self.y_embedder = LabelEmbedding(num_classes + (self.null_label is not None), hidden_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_side**2, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

    @property
    def null_label(self) -> int | None:
        """The label that stands for none, or None where the model was built without label dropout."""
        return self.num_classes if self.label_dropout > 0 else None

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Set every parameter to its initial value; each block then starts as the identity (section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # a view: a patch is one vector
                module.get_parameter("bias").zero_()
        for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.embedding_table"):
            self.get_parameter(f"{name}.weight").normal_(std=0.02)
        for module in (*self.blocks, self.final_layer):
            module.get_parameter("adaLN_modulation.1.weight").zero_()
        self.final_layer.linear.weight.zero_()
        self.pos_embed.copy_(sincos_positions(self.hidden_size, self.grid_side))

    def use_fp8(self) -> None:
        """Have blocks multiply in 8 bits; raises InputError where torchao is missing."""
        use_fp8(self.blocks, self.pos_embed.device)

    def compile_blocks(self, activation_budget: float = 1.0) -> None:
        """Compile each block; all of them share one graph a shape.

        Of its activations a block keeps the part ``activation_budget`` and recomputes the others in backward, chosen
        by what they cost to recompute (PyTorch's partitioner, a knapsack problem).
        """
        import torch._functorch.config as functorch

        functorch.activation_memory_budget = activation_budget
        self.is_compiled = True
        for block in self.blocks:
            block.forward = torch.compile(block.forward, dynamic=False)

    def forward(self, latent: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        """Return the network's output for a noised latent, in the dtype of the weights.

        ``latent`` is [N, C, S, S], ``timestep`` [N] integer or real, ``label`` [N] integer; the output is
        [N, C_out, S, S], where C_out = 2C with ``learn_sigma`` and C without.
        """
        tokens = self.x_embedder(latent) + self.pos_embed  # [N, T, D]
        conditioning = self.t_embedder(timestep) + self.y_embedder(label)  # [N, D]
        # Here, outside of what is compiled:
        backend = choose_backend(self.attention, tokens.device, tokens.dtype, self.is_compiled)
        for block in self.blocks:
            tokens = block(tokens, conditioning, backend)
        patches = self.final_layer(tokens, conditioning)  # [N, T, P*P*C_out]
        return self.unpatchify(patches)  # [N, C_out, S, S]

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Lay patches [N, T, P*P*C_out] out as a latent [N, C_out, S, S]."""
        grid, patch = self.grid_side, self.patch_size
        tiles = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))  # [N, G, G, P, P, C_out]
        return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [N, C_out, S, S]


def _check_sizes(latent_size: int, patch_size: int, hidden_size: int, num_heads: int, label_dropout: float) -> None:
    if min(latent_size, patch_size, hidden_size, num_heads) < 1:
        raise InputError(
            f"latent_size {latent_size}, patch_size {patch_size}, hidden_size {hidden_size} and num_heads {num_heads} "
            "must all be 1 or more; fix the one that is not"
        )
    if latent_size % patch_size:
        raise InputError(
            f"latent_size {latent_size} is not a multiple of patch_size {patch_size}; "
            "choose a patch_size that divides it"
        )
    if hidden_size % num_heads or hidden_size % 4:
        raise InputError(
            f"hidden_size {hidden_size} must be a multiple of num_heads {num_heads} and, for the table of "
            "positions, of 4; change one of the two"
        )
    if not 0 <= label_dropout < 1:
        raise InputError(f"label_dropout {label_dropout} is not in [0, 1); 0.1 is the published value")
