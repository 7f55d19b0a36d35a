"""Whether gradients are reduced beside the backward pass, which hides the network and makes the host wait.

DeepSpeed's host waits for the GPU at the end of a reduction that overlaps (ZeRO 1 and 2, version 0.19.8), and the GPU
then idles until the next launches reach it. Where ranks sum a gradient sooner than that, as inside a node with NVLink,
reducing it after the backward pass is faster; neither changes a bit of the result.
"""

import logging
import time

import torch
import torch.distributed as dist

WAIT_SECONDS = 10e-3
"""What a GPU idles in a step for one wait, rounded down: 12 to 22 ms on an H200 with DiT-XL/2, waiting for a norm."""
_PROBE_BYTES = 1 << 26

log = logging.getLogger(__name__)


def overlap_pays(num_bytes: int, device: str) -> bool:
    """Return whether summing so many bytes over ranks takes longer than waiting for it beside backward (collective)."""
    seconds = reduction_seconds(num_bytes, device)
    pays = seconds > WAIT_SECONDS
    if dist.get_rank() == 0:
        when = "beside" if pays else "after"
        log.info("gradients are reduced %s the backward pass: that takes about %.1f ms", when, 1e3 * seconds)
    return pays


def reduction_seconds(num_bytes: int, device: str) -> float:
    """Return how long summing so many bytes over ranks takes, by a smaller sum; alike on every rank (collective)."""
    part = torch.zeros(min(num_bytes, _PROBE_BYTES), dtype=torch.uint8, device=device)
    for _ in range(2):  # the first one connects the ranks
        _finish(device)
        started = time.perf_counter()
        dist.all_reduce(part)
        _finish(device)
        elapsed = time.perf_counter() - started
    longest = torch.tensor(elapsed * num_bytes / part.numel(), device=device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return longest.item()


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
