"""Which settings fit, and how fast each would be."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from dit_scale.config import Config, unused_names
from dit_scale.models import DiT
from dit_scale.planning.choices import is_allowed, setup_of
from dit_scale.planning.cluster import Cluster
from dit_scale.planning.memory import MemoryEstimate, TrainingSetup, estimate_memory
from dit_scale.planning.prediction import Prediction, predict
from dit_scale.zero.batches import plan_batches

USABLE_SHARE = 0.9
"""Of a GPU's memory; the rest is CUDA's context, fragments and what no arithmetic knows."""


@dataclass(frozen=True)
class Plan:
    """A setup with what it takes and what it gives."""

    config: Config
    setup: TrainingSetup
    memory: MemoryEstimate
    prediction: Prediction
    with_all_tokens: Prediction | None = None
    """The same of a step that routes no tokens, where other steps do."""

    @property
    def seconds(self) -> float:
        """What all steps of the run take, routed ones and those after them."""
        steps, until = self.config.train.steps, self.config.routing.until_step
        routed = min(until, steps) if until and self.with_all_tokens else steps
        last = self.with_all_tokens or self.prediction
        return routed * self.prediction.step.seconds + (steps - routed) * last.step.seconds

    def fits(self, cluster: Cluster) -> bool:
        """Whether the estimate leaves a tenth of the memory free."""
        return self.memory.peak <= USABLE_SHARE * cluster.gpu.memory_bytes

    def overrides(self) -> str:
        """Return what to give to `dit-scale train` for it."""
        engine, train = self.config.engine, self.config.train
        words = [
            f"engine.zero_stage={engine.zero_stage}",
            f"train.micro_batch_size_per_gpu={train.micro_batch_size_per_gpu}",
            f"engine.checkpoint_every_blocks={engine.checkpoint_every_blocks}",
        ]
        return " ".join([*words, *(["engine.offload_optimizer=true"] if engine.offload_optimizer else [])])


def plan_of(config: Config, model: DiT, cluster: Cluster) -> Plan:
    """Return the plan of a configuration as it stands; raises InputError where the GPUs do not divide the batch."""
    setup = setup_of(config, model, cluster.num_gpus, on_gpu=True, gpus_per_node=cluster.gpus_per_node)
    size, compiled = config.train.global_batch_size, config.engine.compile
    predicted, in_all = (
        predict(model, replace(setup, all_tokens=all_tokens), cluster, size, compiled) for all_tokens in (False, True)
    )
    return Plan(config, setup, estimate_memory(model, setup), predicted, in_all if config.routing.ratio else None)


def search(config: Config, model: DiT, cluster: Cluster) -> list[Plan]:
    """Return the plans that fit, the fastest first; with the optimizer offloaded only where nothing else fits."""
    for offload in (False, True):
        plans = [plan_of(choice, model, cluster) for choice in _choices(config, cluster, offload)]
        fitting = [plan for plan in plans if plan.fits(cluster)]
        if fitting:
            return sorted(fitting, key=lambda plan: (plan.prediction.step.seconds, plan.memory.peak))
    return []


def _choices(config: Config, cluster: Cluster, offload: bool) -> Iterator[Config]:
    """Yield the configuration with other stages, micro batches and checkpointing, less what `train` would refuse."""
    together = config.diffusion.images_together
    images = plan_batches(config.train, cluster.num_gpus, together).batch_size_per_rank
    stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    for stage, every in product(stages, (0, 4, 2, 1)):
        engine = replace(config.engine, zero_stage=stage, checkpoint_every_blocks=every, offload_optimizer=offload)
        if not is_allowed(engine, config.train) or (offload and "offload_optimizer" in unused_names(engine)):
            continue
        for micro in (size for size in range(together, images + 1, together) if images % size == 0):
            yield replace(config, engine=engine, train=replace(config.train, micro_batch_size_per_gpu=micro))
