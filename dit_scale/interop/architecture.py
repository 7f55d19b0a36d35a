"""What the names and shapes of published weights say of the network that they belong to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dit_scale.errors import InputError

_TABLE = "y_embedder.embedding_table.weight"
_PATCHES, _ENCODER_PATCHES = "x_embedder.proj.weight", "s_embedder.proj.weight"
_WIDE = {"gelu": "blocks.0.mlp.fc1.weight", "swiglu": "blocks.0.mlp.w12.weight"}
_MODULATION, _LAST = "blocks.0.adaLN_modulation.1.weight", "final_layer.linear.weight"


@dataclass(frozen=True)
class Architecture:
    """All that names and shapes tell, by the names of ``NetworkConfig``; None is what they do not."""

    latent_size: int
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int | None
    """Told by a table of rotations, or by the norm of queries."""
    mlp_ratio: float
    norm: str
    mlp: str
    rope: bool | None
    """True by the tables of rotations, which a file may lack, and False for DiT's own blocks; else not told."""
    qk_norm: bool
    adaln_shift: bool
    time_embedding: str
    head_hidden_size: int | None
    """None without a head, and so are the next two."""
    head_depth: int | None
    head_num_heads: int | None
    """Told as ``num_heads``."""
    condition: str
    """``label``, or ``none`` where nothing embeds one."""
    num_labels: int
    """Rows of the label table: the classes, and the null label where there is one; 0 where there is no table."""
    learn_sigma: bool

    @property
    def has_published_blocks(self) -> bool:
        """Whether it is the network of DiT and SiT, without a switch or a head."""
        is_plain = (self.norm, self.mlp, self.time_embedding) == ("layernorm", "gelu", "sinusoidal")
        return is_plain and self.adaln_shift and not self.qk_norm and not self.rope and self.head_depth is None


OWN_LAYERS = ("early_layer.", "route.", "further_t_embedders.")
"""Of networks that nobody else has, and whose settings no name tells."""


def architecture_of(weights: Mapping[str, Tensor], origin: str) -> Architecture:
    """Read an architecture from a state dict under the published names; raises InputError where it is no DiT's."""
    if own := next((name for name in weights if name.startswith(OWN_LAYERS)), None):
        raise InputError(
            f"weights '{origin}' hold {own}, a layer of dit-scale's own, whose place they do not tell; import takes "
            f"weights without it, and dit-scale train init_from={origin} these, with the same model.* and routing.*"
        )
    mlp = "swiglu" if _WIDE["swiglu"] in weights else "gelu"
    is_conditional = any(name.startswith("y_embedder.") for name in weights)
    _check_is_dits(weights, (_WIDE[mlp], *([_TABLE] if is_conditional else [])), origin)
    hidden_size, in_channels, patch_size = encoder_patches(weights).shape[:3]
    depth, head_depth = _depths(weights, hidden_size, origin)
    has_rotations = "feat_rope.freqs_cos" in weights or "enc_feat_rope.freqs_cos" in weights
    norm = "rmsnorm" if "blocks.0.norm1.weight" in weights else "layernorm"
    tables = ("enc_feat_rope", "dec_feat_rope") if head_depth else ("feat_rope", "")
    head_hidden_size = weights[_PATCHES].shape[0] if head_depth else None
    return Architecture(
        latent_size=math.isqrt(weights["pos_embed"].shape[1]) * patch_size,
        patch_size=patch_size,
        in_channels=in_channels,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=_heads(weights, tables[0], 0, hidden_size, origin),
        mlp_ratio=_ratio(weights[_WIDE[mlp]].shape[0], hidden_size, mlp),
        norm=norm,
        mlp=mlp,
        rope=True if has_rotations else None if head_depth or (norm, mlp) != ("layernorm", "gelu") else False,
        qk_norm="blocks.0.attn.q_norm.weight" in weights,
        adaln_shift=weights[_MODULATION].shape[0] != 4 * hidden_size,
        time_embedding="fourier" if "t_embedder.W" in weights else "sinusoidal",
        head_hidden_size=head_hidden_size,
        head_depth=head_depth,
        head_num_heads=_heads(weights, tables[1], depth, head_hidden_size, origin) if head_hidden_size else None,
        condition="label" if is_conditional else "none",
        num_labels=weights[_TABLE].shape[0] if is_conditional else 0,
        learn_sigma=weights[_LAST].shape[0] // patch_size**2 == 2 * in_channels,
    )


def encoder_patches(weights: Mapping[str, Tensor]) -> Tensor:
    """Return the weights [D, C, P, P] that make the first blocks' tokens; with a head these are not ``x_embedder``'s.

    Raises KeyError where there are none.
    """
    return weights[_ENCODER_PATCHES if _ENCODER_PATCHES in weights else _PATCHES]


def _check_is_dits(weights: Mapping[str, Tensor], further: tuple[str, ...], origin: str) -> None:
    """Raise InputError where a weight is missing that all these networks have, or is no matrix."""
    matrices = (_MODULATION, _LAST, *further)
    for name in ("pos_embed", _PATCHES, *matrices):
        if name not in weights:
            begin = ", ".join(list(weights)[:3]) or "none"
            raise InputError(
                f"weights '{origin}' hold no {name} and so are not a DiT's (they begin with: {begin}); give a "
                f"published DiT, SiT, LightningDiT, REPA or RAE checkpoint, or one that dit-scale export wrote"
            )
    needed = {_PATCHES: 4, "pos_embed": 3} | dict.fromkeys(matrices, 2)
    if _ENCODER_PATCHES in weights:
        needed[_ENCODER_PATCHES] = 4
    if wrong := next((name for name, dims in needed.items() if weights[name].dim() != dims), None):
        raise InputError(f"weights '{origin}' are not a DiT's: {wrong} is {tuple(weights[wrong].shape)}")


def _depths(weights: Mapping[str, Tensor], hidden_size: int, origin: str) -> tuple[int, int | None]:
    """Return the number of blocks, and of those of a head, which are wider or narrower; None without a head."""
    total = 1 + max(_block(name, origin) for name in weights if name.startswith("blocks."))
    if _ENCODER_PATCHES not in weights:
        return total, None
    if weights[_PATCHES].shape[0] == hidden_size:
        raise InputError(
            f"weights '{origin}' have a head whose blocks are {hidden_size} wide like all others, so that shapes do "
            f"not tell where it begins; only heads of another width can be imported"
        )
    queries = (weights.get(f"blocks.{number}.attn.qkv.weight") for number in range(total))
    head_depth = sum(matrix is not None and matrix.shape[-1] != hidden_size for matrix in queries)
    return total - head_depth, head_depth


def _block(name: str, origin: str) -> int:
    number = name.split(".")[1]
    if not number.isdecimal():
        raise InputError(
            f"weights '{origin}' hold {name}, but a DiT's blocks have numbers; give a published DiT's weights"
        )
    return int(number)


def _heads(weights: Mapping[str, Tensor], table: str, block: int, width: int, origin: str) -> int | None:
    """Return the number of attention heads, where a table of rotations [T, d] or a norm [d] tells their width d."""
    names = (f"{table}.freqs_cos", f"blocks.{block}.attn.q_norm.weight")
    name = next((name for name in names if name in weights), None)
    if name is None:
        return None
    head_size = weights[name].shape[-1]
    if not head_size or width % head_size:
        raise InputError(
            f"weights '{origin}' are not a DiT's: heads of {head_size} numbers, as {name} has them, do not fill the "
            f"width {width}"
        )
    return width // head_size


def _ratio(rows: int, hidden_size: int, mlp: str) -> float:
    """Return a ratio of which the model, which rounds down, makes exactly so many rows; a whole one where it can."""
    widths = [rows]
    if mlp == "swiglu":  # of which 2/3 are taken, twice
        wide = rows // 2
        widths = [width for width in range(wide * 3 // 2, wide * 3 // 2 + 3) if int(2 / 3 * width) == wide] or [rows]
    width = next((width for width in widths if width % hidden_size == 0), widths[0])
    ratio = width / hidden_size
    return ratio if int(hidden_size * ratio) == width else (width + 0.5) / hidden_size
