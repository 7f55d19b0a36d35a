"""What a run is planned on: GPUs by their makers' datasheets, and the network between them."""

from dataclasses import dataclass

from dit_scale.errors import InputError, nearest

GIB = 1 << 30


@dataclass(frozen=True)
class GPU:
    """One kind of GPU; rates are a datasheet's, dense."""

    name: str
    bf16_flops: float
    memory_bytes: float
    memory_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second to the other GPUs of a node, each way."""


GPUS = {
    "a100": GPU("A100 80 GB", 312e12, 80 * GIB, 2.0e12, 300e9),
    "h100": GPU("H100", 989e12, 80 * GIB, 3.35e12, 450e9),
    "h200": GPU("H200", 989e12, 141e9, 4.8e12, 450e9),
    "b200": GPU("B200", 2250e12, 180e9, 7.7e12, 900e9),
}


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of one kind, and what it costs to talk."""

    gpu: GPU
    num_gpus: int
    gpus_per_node: int = 8
    network_bandwidth: float = 50e9
    """Bytes a second and GPU between nodes, each way: 400 Gbit/s."""
    disk_bandwidth: float = 2e9
    """Bytes a second and node that a checkpoint is written with."""

    @property
    def num_nodes(self) -> int:
        """Nodes, the last perhaps in part."""
        return -(-self.num_gpus // self.gpus_per_node)

    @property
    def ring_bandwidth(self) -> float:
        """Bytes a second that a rank sends in a ring over all GPUs: the slowest link's."""
        between = self.network_bandwidth if self.num_nodes > 1 else self.gpu.link_bandwidth
        return min(between, self.gpu.link_bandwidth)


def gpu_named(name: str) -> GPU:
    """Return a GPU by its name; raises InputError for one that is not known."""
    if name.lower() not in GPUS:
        raise InputError(f"--gpu {name} is unknown{nearest(name.lower(), GPUS)}")
    return GPUS[name.lower()]
