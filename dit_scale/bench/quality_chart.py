"""The distance of samples against the compute of their training: a line a configuration, a band over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Protocol

from dit_scale.files import atomic_write


class Measured(Protocol):
    """What was measured of a run at a step."""

    @property
    def step(self) -> int:
        """After which it was measured."""

    @property
    def compute_seconds(self) -> float:
        """Spent until there."""

    @property
    def distance(self) -> float:
        """Of its samples."""


def draw(runs: Mapping[str, Sequence[Sequence[Measured]]], title: str, compute: str, path: Path) -> None:
    """Write the chart as a PNG: medians over seeds, least to most as a band, and the first one's final distance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for name, seeds in runs.items():
        at_step = list(zip(*seeds, strict=True))  # every seed is measured at the same steps
        distances = [[point.distance for point in points] for points in at_step]
        seconds = [median(point.compute_seconds for point in points) for points in at_step]
        (line,) = axes.plot(seconds, list(map(median, distances)), "o-", ms=3, label=name)
        axes.fill_between(
            seconds, list(map(min, distances)), list(map(max, distances)), color=line.get_color(), alpha=0.2, lw=0
        )
    first = next(iter(runs.values()))
    axes.axhline(median(run[-1].distance for run in first), color="k", ls=":", lw=1)
    axes.set(xlabel=compute, ylabel="Fréchet distance", yscale="log")
    axes.set_title(fill(title, 100), fontsize=9)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)
