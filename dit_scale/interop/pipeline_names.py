"""Parameters under diffusers' names: a matrix each for query, key and value, and the embedders in every block.

The halves and sixths of the modulations lie in the same order on both sides, which tests show by comparing outputs.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dit_scale.errors import InputError

TABLE_CLASSES = 1000
"""Classes of the label table that the pipeline needs: it takes label 1000 for the null label."""

_EMBEDDERS = {  # one of each here; there a copy in every block
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
_IN_A_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_TABLE = "y_embedder.embedding_table.weight"


def to_pipeline_names(weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return published weights under diffusers' names; positions stay behind, which diffusers makes itself."""
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
        if module in _EMBEDDERS:
            for index in range(depth):
                result[f"transformer_blocks.{index}.{_EMBEDDERS[module]}.{kind}"] = value
        elif module in _OUTSIDE:
            result[f"{_OUTSIDE[module]}.{kind}"] = value
        elif block is not None and block[2] == "attn.qkv":
            for there, part in zip(_QKV, value.chunk(3), strict=True):
                result[f"transformer_blocks.{block[1]}.{there}.{kind}"] = part
        elif block is not None:
            result[f"transformer_blocks.{block[1]}.{_IN_A_BLOCK[block[2]]}.{kind}"] = value
    return result


def to_published_names(weights: Mapping[str, Tensor], depth: int, origin: str) -> dict[str, Tensor]:
    """Undo ``to_pipeline_names``; raises InputError where the blocks' copies of an embedder are not the same."""
    result: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for here, there in _OUTSIDE.items():
            result[f"{here}.{kind}"] = weights[f"{there}.{kind}"]
        for here, there in _EMBEDDERS.items():
            copies = [weights.get(f"transformer_blocks.{index}.{there}.{kind}") for index in range(depth)]
            if copies[0] is not None:  # a table has no bias
                result[f"{here}.{kind}"] = _the_same(copies, there, origin)
        for index in range(depth):
            block = f"transformer_blocks.{index}"
            result[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat([weights[f"{block}.{part}.{kind}"] for part in _QKV])
            for here, there in _IN_A_BLOCK.items():
                result[f"blocks.{index}.{here}.{kind}"] = weights[f"{block}.{there}.{kind}"]
    return result


def pad_labels(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights whose label table has 1001 rows: the classes, then the null label to the end."""
    table = weights[_TABLE]
    null = table[-1:]
    return dict(weights) | {_TABLE: torch.cat((table[:-1], null.expand(TABLE_CLASSES + 1 - len(table), -1), null))}


def cut_labels(weights: Mapping[str, Tensor], num_classes: int, origin: str) -> dict[str, Tensor]:
    """Undo ``pad_labels``; raises InputError where a row that would go is a class of its own."""
    table = weights[_TABLE]
    surplus = table[num_classes:-1]
    if len(table) <= num_classes or not torch.equal(surplus, table[-1:].expand_as(surplus)):
        raise InputError(
            f"'{origin}' has a label table of {len(table) - 1} classes but names for {num_classes}; give the names of "
            f"all with --class-names FILE"
        )
    return dict(weights) | {_TABLE: torch.cat((table[:num_classes], table[-1:]))}


def _the_same(copies: list[Tensor | None], name: str, origin: str) -> Tensor:
    first = copies[0]
    assert first is not None
    for index, copy in enumerate(copies):
        if copy is None or not torch.equal(first, copy):
            raise InputError(
                f"'{origin}' has another {name} in block {index} than in block 0, as after training there; a DiT has "
                f"one for all blocks, so these weights cannot be taken over"
            )
    return first
