"""Scaling as the plan predicts it, drawn: the same work a GPU, and the same global batch."""

from dataclasses import dataclass, replace
from pathlib import Path

from dit_scale.errors import InputError
from dit_scale.files import atomic_write
from dit_scale.models import DiT
from dit_scale.planning.cluster import Cluster
from dit_scale.planning.search import Plan, plan_of, search

MOST_GPUS = 4096


@dataclass(frozen=True)
class Scaling:
    """Predicted rates over numbers of GPUs."""

    title: str
    plans: list[Plan]
    """One a number of GPUs, rising."""

    def gpus(self) -> list[int]:
        """Return the numbers of GPUs."""
        return [plan.setup.world_size for plan in self.plans]

    def per_gpu(self) -> list[float]:
        """Return the images a second and GPU."""
        return [plan.prediction.images_per_second / plan.setup.world_size for plan in self.plans]


def scalings(plan: Plan, model: DiT, cluster: Cluster, searching: bool) -> list[Scaling]:
    """Return weak scaling (a global batch that grows with the GPUs) and strong scaling (one that stays).

    With the plan's settings everywhere or, ``searching``, with the best that fit each number of GPUs.
    """
    config, images = plan.config, plan.config.train.global_batch_size
    each = images // cluster.num_gpus
    counts = [1 << power for power in range(MOST_GPUS.bit_length())]

    def at(count: int, global_batch_size: int) -> Plan | None:
        train = replace(config.train, global_batch_size=global_batch_size)
        there, changed = replace(cluster, num_gpus=count), replace(config, train=train)
        try:
            return next(iter(search(changed, model, there)), None) if searching else plan_of(changed, model, there)
        except InputError:  # more GPUs than images
            return None

    weak = [found for count in counts if (found := at(count, count * each))]
    strong = [found for count in counts if (found := at(count, images))]
    return [
        Scaling(f"{each} images a GPU, whatever the number", weak),
        Scaling(f"{images} images in all", strong),
    ]


def draw(found: list[Scaling], title: str, path: Path) -> None:
    """Write the chart as a PNG, or what else the path's ending says."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for scaling, marker in zip(found, "os", strict=True):
        gpus, rates = scaling.gpus(), scaling.per_gpu()
        left.plot(
            gpus, [count * rate for count, rate in zip(gpus, rates, strict=True)], f"{marker}-", label=scaling.title
        )
        right.plot(gpus, [100 * rate / rates[0] for rate in rates], f"{marker}-", label=scaling.title)
    gpus = found[0].gpus()
    left.plot(gpus, [count * found[0].per_gpu()[0] for count in gpus], "k:", lw=1, label="linear")
    left.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="images/s")
    right.set(xscale="log", xlabel="GPUs", ylabel="of one GPU's rate, %")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4096"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)
