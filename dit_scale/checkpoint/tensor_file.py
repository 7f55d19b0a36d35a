"""A safetensors file written as a stream: no second copy in memory, and the digest comes along.

The format is a header of JSON, its length before it, then the tensors' bytes (huggingface/safetensors, README); any
safetensors reader opens it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

_BLOCK_BYTES = 1 << 24


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write 1-D fp32 tensors of this machine's memory to disk; return the file's bytes and its xxh3-128."""
    digest, num_bytes = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as file:
        for part in (_header(tensors), *map(_bytes_of, tensors.values())):
            for start in range(0, len(part), _BLOCK_BYTES):
                block = part[start : start + _BLOCK_BYTES]
                digest.update(block)
                num_bytes += len(block)
                while block:  # a write may take a part
                    block = block[file.write(block) :]
        os.fsync(file.fileno())
    return num_bytes, digest.hexdigest()


def _header(tensors: Mapping[str, Tensor]) -> memoryview:
    entries, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * tensor.numel()
        entries[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _bytes_of(tensor: Tensor) -> memoryview:
    numbers: Any = tensor.detach().float().cpu().contiguous().numpy()
    return memoryview(numbers).cast("B")
