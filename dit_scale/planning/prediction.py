"""How long a step will take: a roofline of matrix products, memory traffic and communication.

Each rate is a datasheet's times a share that is reached in practice, as measured on an H200 (docs/performance.md); the
shares are named here and nowhere else. The times of the parts are added up, and communication counts as far as nothing
hides it.
"""

from dataclasses import dataclass

from dit_scale.models import DiT
from dit_scale.optim import whole_cost
from dit_scale.parameters import num_trained, trained
from dit_scale.planning.cluster import Cluster
from dit_scale.planning.communication import Collective, collectives_of
from dit_scale.planning.flops import attention_flops_per_image, training_flops_per_image
from dit_scale.planning.memory import TrainingSetup, activation_bytes_per_image, checkpoint_bytes, optimizer_numbers

MATMUL_SHARE = 0.71
"""Of a datasheet's FLOP/s in linear layers: 698 of 989 TFLOP/s were measured in training DiT-XL/2 in bf16."""
ATTENTION_SHARE = 0.2
"""Of the same between queries, keys and values: 0.175 were measured with 256 tokens, 0.237 with 1,024."""
HALF_RATE_TOKENS = 512
"""Tokens in a micro batch at which products run at half of that: small ones do not fill a GPU."""
BANDWIDTH_SHARE = 0.8
"""Of memory's and the network's datasheet rates."""
PASSES_EAGER, PASSES_COMPILED = 9.0, 4.2
"""How often what autograd keeps is read or written outside of products: each operation on its own (an estimate), or
fused (measured)."""
ENCODER_PASSES = 2.0
"""How often what a frozen encoder's operations write is written or read: once each."""
UPDATE_BYTES, STATE_BYTES, COPY_BYTES = 38, 8, 20
"""Traffic in an update. Of a parameter: master and EMA read and written, the gradient read for its norm, converted and
read again, bf16 weights written. Of a number of the optimizer's state: read and written. Of one that is copied so that
an update can be put back: copied, and then chosen from both."""
HOST_SECONDS = 10e-3
"""Of a step's launches that the GPU waits for, measured while the host still waited for the gradient norm in each."""
OFFLOAD_BANDWIDTH = 25e9
"""Bytes a second between host and GPU, each way."""
CALL_SECONDS = 20e-6
"""Of one collective, however short, times the logarithm of the ranks."""
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they go to."""

    products: float
    """Matrix products, those of recomputed blocks too."""
    elementwise: float
    """All else that reads and writes activations."""
    update: float
    communication: float
    """In all; hidden or not."""
    exposed: float
    """What of it nothing hides."""
    host: float
    """For which the GPU waits for the host."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.products + self.elementwise + self.update + self.exposed + self.host


@dataclass(frozen=True)
class Prediction:
    """What a setup will do on a cluster."""

    step: StepTime
    images_per_second: float
    mfu: float
    """Of the datasheet's bf16 FLOP/s; recomputed work, and that of frozen encoders, does not count."""
    save_seconds: float


def predict(model: DiT, setup: TrainingSetup, cluster: Cluster, global_batch_size: int, compiled: bool) -> Prediction:
    """Return how fast a step will be, by the arithmetic above."""
    flops = training_flops_per_image(model, setup.all_tokens)
    step = step_time(model, setup, cluster, global_batch_size // cluster.num_gpus, compiled)
    rate = global_batch_size / step.seconds
    return Prediction(
        step,
        rate,
        rate * flops / (cluster.gpu.bf16_flops * cluster.num_gpus),
        checkpoint_bytes(model, setup.groups) / (cluster.disk_bandwidth * cluster.num_nodes),
    )


def step_time(model: DiT, setup: TrainingSetup, cluster: Cluster, images: int, compiled: bool) -> StepTime:
    """Return the time of a step in which each rank sees so many images."""
    gpu, every = cluster.gpu, setup.checkpoint_every_blocks
    recomputed = len(range(0, len(model.blocks), every)) / len(model.blocks) if every else 0.0
    tokens = min(images, setup.micro_batch_size) * _tokens_of_a_block(model, setup.all_tokens)
    share = MATMUL_SHARE * tokens / (tokens + HALF_RATE_TOKENS)
    rate = gpu.bf16_flops * share * (2 / setup.bytes_per_number)  # fp32 at half of it, as TF32 is
    attention = attention_flops_per_image(model, setup.all_tokens)
    linear = training_flops_per_image(model, setup.all_tokens) - attention
    work = linear + attention * MATMUL_SHARE / ATTENTION_SHARE  # as if all ran at the rate of linear layers
    products = images * (work * (1 + recomputed / 3) + setup.frozen.flops) / rate
    passes = (PASSES_COMPILED if compiled else PASSES_EAGER) * (1 + recomputed / 3)
    memory_rate = gpu.memory_bandwidth * BANDWIDTH_SHARE
    activations = activation_bytes_per_image(model, setup) * passes
    activations += ENCODER_PASSES * setup.bytes_per_number * setup.frozen.written
    elementwise = images * activations / memory_rate
    total = num_trained(model)
    part = total / setup.world_size if setup.zero_stage else total
    kept = optimizer_numbers(model, setup)
    update = (UPDATE_BYTES * part + STATE_BYTES * kept.state + COPY_BYTES * kept.copies) / memory_rate
    whole = whole_cost(setup.groups, trained(model), setup.world_size if setup.zero_stage else None)
    update += whole.flops / (gpu.bf16_flops * MATMUL_SHARE)  # in bf16 whatever the precision
    if setup.offload_optimizer:
        update = 8 * part / OFFLOAD_BANDWIDTH
    collectives = collectives_of(model, setup) if setup.world_size > 1 else []
    seconds = {collective: _seconds(collective, cluster) for collective in collectives}
    compute = products + elementwise
    behind = {"forward": compute * (1 - BACKWARD_SHARE), "backward": compute * BACKWARD_SHARE, "nothing": 0.0}
    exposed = sum(
        max(0.0, sum(time for one, time in seconds.items() if one.hides_behind == phase) - room)
        for phase, room in behind.items()
    )
    return StepTime(products, elementwise, update, sum(seconds.values()), exposed, HOST_SECONDS)


def _tokens_of_a_block(model: DiT, all_tokens: bool) -> float:
    """Return the tokens of an image in a block, over all blocks on average."""
    config = model.config
    around = 0 if all_tokens else config.num_tokens - config.num_kept
    return config.num_tokens - around * len(config.routed_blocks) / len(model.blocks)


def _seconds(collective: Collective, cluster: Cluster) -> float:
    is_inside = collective.stays_in_node
    ranks = min(cluster.num_gpus, cluster.gpus_per_node) if is_inside else cluster.num_gpus
    bandwidth = cluster.gpu.link_bandwidth if is_inside else cluster.ring_bandwidth
    sent = collective.sent_bytes(ranks) / (bandwidth * BANDWIDTH_SHARE)
    return sent + collective.calls * CALL_SECONDS * max(1, (ranks - 1).bit_length())
