"""The Diffusion Transformer with adaLN-Zero blocks (Peebles & Xie, arXiv 2212.09748), and with a head or without.

N samples of C x S x S latents, patches of P x P, T = (S/P)² tokens of width D.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_scale.conditioning import Labels, build_condition
from dit_scale.errors import InputError
from dit_scale.models.attention import choose_backend
from dit_scale.models.blocks import Block, FinalLayer
from dit_scale.models.config import NetworkConfig, keywords_of
from dit_scale.models.embeddings import TIME_EMBEDDINGS, PatchEmbedding, Rotation, grid_rotation, sincos_positions
from dit_scale.models.linear import use_fp8
from dit_scale.models.operators import Fused
from dit_scale.models.projectors import build_projectors
from dit_scale.models.route import Rejoining, entering, routed_blocks


class DiT(nn.Module):
    """A Diffusion Transformer under the published parameter names; keywords are the fields of ``NetworkConfig``.

    ``condition`` is the class label by default. ``label_dropout`` only gives it a null (for labels the row
    ``null_label`` of their table): the caller substitutes it, and ``forward`` draws nothing. With ``learn_sigma`` the
    output has twice the channels of the latent.

    With a head (DDT, arXiv 2504.05741, as RAE has it, arXiv 2510.11690) the first ``depth`` blocks read the latent, and
    what they make of it conditions the head, whose blocks follow and see the latent again.
    """

    @keywords_of(NetworkConfig)
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = NetworkConfig(**settings)
        self.attention: str = config.attention
        self.has_kernels, self.is_compiled = True, False
        self.latent_size, self.patch_size, self.in_channels = config.latent_size, config.patch_size, config.in_channels
        self.hidden_size, self.depth, self.num_heads = config.hidden_size, config.depth, config.num_heads
        self.mlp_ratio, self.num_classes = config.mlp_ratio, config.num_classes
        self.label_dropout, self.learn_sigma = config.label_dropout, config.learn_sigma
        self.num_times = config.num_times
        self.out_channels = 2 * self.in_channels if self.learn_sigma else self.in_channels
        self.grid_side = self.latent_size // self.patch_size
        self.has_head = len(config.stacks) > 1
        last = config.stacks[-1]

        self.x_embedder = PatchEmbedding(self.patch_size, self.in_channels, last.hidden_size)
        if self.has_head:
            self.s_embedder = PatchEmbedding(self.patch_size, self.in_channels, self.hidden_size)
            is_wider = last.hidden_size != self.hidden_size
            self.s_projector = nn.Linear(self.hidden_size, last.hidden_size) if is_wider else nn.Identity()
        time_embedding = TIME_EMBEDDINGS[config.time_embedding]
        self.t_embedder = time_embedding(self.hidden_size)
        self.further_t_embedders = nn.ModuleList(time_embedding(self.hidden_size) for _ in range(1, self.num_times))
        self.condition = build_condition(config.condition, self.num_classes, has_null=self.label_dropout > 0)
        self.y_embedder = self.condition.embedding(self.hidden_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_side**2, self.hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(stack) for stack in config.stacks for _ in range(stack.depth))
        self.final_layer = FinalLayer(last, self.out_channels)
        self.route = None if config.route is None else Rejoining(config.route.fill, self.hidden_size)
        self.initialize_weights()
        # Side layers last, so that all other initial values are as without them.
        if config.early_block:
            self.early_layer = _early_layer(config, self.out_channels)
        self.projectors = build_projectors(config)

    @property
    def null_label(self) -> int | None:
        """The label that stands for none, or None where the model knows no such label."""
        is_dropped = isinstance(self.condition, Labels) and self.condition.has_null
        return self.num_classes if is_dropped else None

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Set every parameter to its initial value; each block then starts as the identity (section 3.2)."""
        # Linear layers of a network with a head keep PyTorch's own (RAE's code).
        for module in self.modules():
            if isinstance(module, nn.Conv2d if self.has_head else nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # a view: a patch is one vector
                module.get_parameter("bias").zero_()
        for embedder in (self.t_embedder, *self.further_t_embedders):
            for name in ("mlp.0.weight", "mlp.2.weight"):
                embedder.get_parameter(name).normal_(std=0.02)
        self.condition.initialize(self.y_embedder)
        for module in (*self.blocks, self.final_layer):
            module.get_parameter("adaLN_modulation.1.weight").zero_()
            module.get_parameter("adaLN_modulation.1.bias").zero_()
        self.final_layer.linear.weight.zero_()
        self.final_layer.linear.bias.zero_()
        self.pos_embed.copy_(sincos_positions(self.hidden_size, self.grid_side))
        if self.route is not None:
            self.route.initialize()

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
        self,
        latent: Tensor,
        timestep: Tensor,
        condition: Tensor,
        hidden: Sequence[int | str] = (),
        kept_tokens: Tensor | None = None,
        path_dropped: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return the network's output for a noised latent, in the dtype of the weights.

        ``latent`` is [N, C, S, S], ``timestep`` [N] integer or real ([N, k] where ``num_times`` is k, 2 or more),
        ``condition`` [N, ...] (labels: [N] integer); the output is [N, C_out, S, S], where C_out = 2C with
        ``learn_sigma`` and C without. ``hidden`` asks for more: the tokens [N, T, D] that leave a block, by its number
        from 1, or what a side layer makes of them, by its name (``projectors.0``: features; ``early_layer``: an output
        [N, C_out, S, S]). It comes as (output, [what is asked for, ...]).

        ``kept_tokens`` [N, K] are the places, rising, of the tokens that go through the routed blocks, where the
        network has a route; None has all of them go. With K = 0 these blocks do not run, and no step may train them.
        ``path_dropped`` [N] are images that do without what the routed blocks return.

        Raises:
            InputError: ``hidden`` asks for a block or a side layer that there is not, or for a routed block where not
                all tokens go through it; or tokens are routed, and the network has no route.
        """
        leaves = {asked: self._block_of(asked) for asked in hidden}
        routed = routed_blocks(self.config.route, self.depth, leaves.values(), kept_tokens, path_dropped)
        time = self._embedded(timestep)  # [N, D]
        tokens, conditioning, rotation = self._enter(latent, time, condition)
        # Here, outside of what is compiled:
        backend = choose_backend(self.attention, tokens.device, tokens.dtype, self.is_compiled, self.has_kernels)
        states: dict[int, tuple[Tensor, Tensor]] = {}

        def through(numbers: Iterable[int], tokens: Tensor, rotation: Rotation | None) -> Tensor:
            for number in numbers:
                tokens = self.blocks[number - 1](tokens, conditioning, backend, rotation)
                if number in leaves.values():
                    states[number] = tokens, conditioning
            return tokens

        tokens = through(range(1, routed.start), tokens, rotation)  # [N, T, D]
        if self.route is not None:
            inside, turned = entering(tokens, rotation, kept_tokens)  # [N, K, D]
            left = through(routed, inside, turned) if inside.shape[1] else inside  # [N, K, D]
            tokens = self.route(left, tokens, kept_tokens, path_dropped)  # [N, T, D]
        tokens = through(range(routed.stop, self.depth + 1), tokens, rotation)  # [N, T, D]
        if self.has_head:
            tokens, conditioning, rotation = self._enter_head(latent, time, tokens)
            tokens = through(range(self.depth + 1, len(self.blocks) + 1), tokens, rotation)  # [N, T, D_head]
        patches = self.final_layer(tokens, conditioning)  # [N, T, P*P*C_out]
        output = self.unpatchify(patches)  # [N, C_out, S, S]
        return (output, [self._side(asked, *states[leaves[asked]]) for asked in hidden]) if hidden else output

    def _embedded(self, timestep: Tensor) -> Tensor:
        """Return the vector [N, D] of a time [N], or the sum of those of several, [N, k]."""
        if self.num_times == 1:
            return self.t_embedder(timestep)
        first, *further = timestep.unbind(dim=1)
        embedded = self.t_embedder(first)
        for embedder, time in zip(self.further_t_embedders, further, strict=True):
            embedded = embedded + embedder(time)
        return embedded

    def _enter(self, latent: Tensor, time: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Rotation | None]:
        """Return tokens [N, T, D], their conditioning [N, D] and their rotation, as the first block gets them."""
        rotation = self._rotation(0, latent.device)
        conditioning = time + self.y_embedder(condition)  # [N, D]
        if self.has_head:
            return self.s_embedder(latent) + self.pos_embed, F.silu(conditioning), rotation
        return self.x_embedder(latent) + self.pos_embed, conditioning, rotation

    def _enter_head(self, latent: Tensor, time: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor, Rotation | None]:
        """Return the same for the head, with a conditioning a token [N, T, D_head], made of ``encoded`` [N, T, D]."""
        conditioning = self.s_projector(F.silu(time[:, None] + encoded))  # [N, T, D_head]
        return self.x_embedder(latent), conditioning, self._rotation(1, latent.device)

    def _rotation(self, stack: int, device: torch.device) -> Rotation | None:
        if not self.config.rope:
            return None
        return grid_rotation(self.config.stacks[stack].head_size, self.grid_side, device)

    def _block_of(self, asked: int | str) -> int:
        """Return the block whose tokens are asked for, or that a side layer stands after."""
        projectors = self.config.projectors
        if asked == "early_layer" and self.config.early_block:
            return self.config.early_block
        if projectors is not None and asked in [f"projectors.{index}" for index in range(len(projectors.widths))]:
            return projectors.after_block
        if isinstance(asked, int) and 1 <= asked <= len(self.blocks):
            return asked
        raise InputError(
            f"hidden state {asked} is asked for and blocks are numbered 1 to {len(self.blocks)}; give one of these"
        )

    def _side(self, asked: int | str, tokens: Tensor, conditioning: Tensor) -> Tensor:
        """Return a block's tokens [N, T, D], or what a side layer makes of them."""
        if isinstance(asked, int):
            return tokens
        if asked == "early_layer":
            return self.unpatchify(self.early_layer(tokens, conditioning))
        return self.get_submodule(asked)(tokens)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Lay patches [N, T, P*P*C_out] out as a latent [N, C_out, S, S]."""
        grid, patch = self.grid_side, self.patch_size
        tiles = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))  # [N, G, G, P, P, C_out]
        return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [N, C_out, S, S]


def _early_layer(config: NetworkConfig, out_channels: int) -> FinalLayer:
    """Return a second final layer; unlike the first, it does not start at zero."""
    layer = FinalLayer(config, out_channels)
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return layer
