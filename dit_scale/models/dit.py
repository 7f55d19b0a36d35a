"""The Diffusion Transformer with adaLN-Zero blocks (Peebles & Xie, arXiv 2212.09748).

N samples of C x S x S latents, patches of P x P, T = (S/P)² tokens of width D.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dit_scale.conditioning import Labels, build_condition
from dit_scale.errors import InputError
from dit_scale.models.attention import choose_backend
from dit_scale.models.blocks import Block, FinalLayer
from dit_scale.models.config import NetworkConfig
from dit_scale.models.embeddings import PatchEmbedding, TimestepEmbedding, sincos_positions
from dit_scale.models.linear import use_fp8
from dit_scale.models.operators import Fused
from dit_scale.models.projectors import build_projectors


class DiT(nn.Module):
    """A Diffusion Transformer under the published parameter names; keywords are the fields of ``NetworkConfig``.

    ``condition`` is the class label by default. ``label_dropout`` only gives it a null (for labels the row
    ``null_label`` of their table): the caller substitutes it, and ``forward`` draws nothing. With ``learn_sigma`` the
    output has twice the channels of the latent.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = NetworkConfig(**settings)
        self.attention: str = config.attention
        self.has_kernels, self.is_compiled = True, False
        self.latent_size, self.patch_size, self.in_channels = config.latent_size, config.patch_size, config.in_channels
        self.hidden_size, self.depth, self.num_heads = config.hidden_size, config.depth, config.num_heads
        self.mlp_ratio, self.num_classes = config.mlp_ratio, config.num_classes
        self.label_dropout, self.learn_sigma = config.label_dropout, config.learn_sigma
        self.out_channels = 2 * self.in_channels if self.learn_sigma else self.in_channels
        self.grid_side = self.latent_size // self.patch_size

        self.x_embedder = PatchEmbedding(self.patch_size, self.in_channels, self.hidden_size)
        self.t_embedder = TimestepEmbedding(self.hidden_size)
        self.condition = build_condition(config.condition, self.num_classes, has_null=self.label_dropout > 0)
        self.y_embedder = self.condition.embedding(self.hidden_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_side**2, self.hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(self.depth))
        self.final_layer = FinalLayer(config, self.out_channels)
        self.initialize_weights()
        self.projectors = build_projectors(config)  # last: all other initial values are as without them

    @property
    def null_label(self) -> int | None:
        """The label that stands for none, or None where the model knows no such label."""
        is_dropped = isinstance(self.condition, Labels) and self.condition.has_null
        return self.num_classes if is_dropped else None

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Set every parameter to its initial value; each block then starts as the identity (section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # a view: a patch is one vector
                module.get_parameter("bias").zero_()
        for name in ("t_embedder.mlp.0", "t_embedder.mlp.2"):
            self.get_parameter(f"{name}.weight").normal_(std=0.02)
        self.condition.initialize(self.y_embedder)
        for module in (*self.blocks, self.final_layer):
            module.get_parameter("adaLN_modulation.1.weight").zero_()
        self.final_layer.linear.weight.zero_()
        self.pos_embed.copy_(sincos_positions(self.hidden_size, self.grid_side))

    def turn_off_kernels(self) -> None:
        """Compute with PyTorch's operators alone: slower, but there is nothing that they cannot do.

        Attention that is left open (``"auto"``) is then two matrix products, which have forward-mode rules, too.
        """
        self.has_kernels = False
        for module in self.modules():
            if isinstance(module, Fused):
                module.has_kernels = False

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

    def forward(
        self, latent: Tensor, timestep: Tensor, condition: Tensor, hidden: Sequence[int | str] = ()
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return the network's output for a noised latent, in the dtype of the weights.

        ``latent`` is [N, C, S, S], ``timestep`` [N] integer or real, ``condition`` [N, ...] (labels: [N] integer); the
        output is [N, C_out, S, S], where C_out = 2C with ``learn_sigma`` and C without. ``hidden`` asks for
        more: the tokens [N, T, D] that leave a block, by its number from 1, or what a side layer makes of them, by its
        name, such as ``projectors.0``: (output, [tokens, ...]).

        Raises:
            InputError: ``hidden`` asks for a block or a side layer that there is not.
        """
        leaves = {asked: self._block_of(asked) for asked in hidden}
        tokens = self.x_embedder(latent) + self.pos_embed  # [N, T, D]
        conditioning = self.t_embedder(timestep) + self.y_embedder(condition)  # [N, D]
        # Here, outside of what is compiled:
        backend = choose_backend(self.attention, tokens.device, tokens.dtype, self.is_compiled, self.has_kernels)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, conditioning, backend)
            if number in leaves.values():
                kept[number] = tokens
        patches = self.final_layer(tokens, conditioning)  # [N, T, P*P*C_out]
        output = self.unpatchify(patches)  # [N, C_out, S, S]
        return (output, [self._side(asked, kept[leaves[asked]]) for asked in hidden]) if hidden else output

    def _block_of(self, asked: int | str) -> int:
        """Return the block whose tokens are asked for, or that a side layer stands after."""
        projectors = self.config.projectors
        if projectors is not None and asked in [f"projectors.{index}" for index in range(len(projectors.widths))]:
            return projectors.after_block
        if isinstance(asked, int) and 1 <= asked <= self.depth:
            return asked
        raise InputError(
            f"hidden state {asked} is asked for and blocks are numbered 1 to {self.depth}; give one of these"
        )

    def _side(self, asked: int | str, tokens: Tensor) -> Tensor:
        """Return a block's tokens, or what a side layer makes of them."""
        return tokens if isinstance(asked, int) else self.get_submodule(asked)(tokens)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Lay patches [N, T, P*P*C_out] out as a latent [N, C_out, S, S]."""
        grid, patch = self.grid_side, self.patch_size
        tiles = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))  # [N, G, G, P, P, C_out]
        return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [N, C_out, S, S]
