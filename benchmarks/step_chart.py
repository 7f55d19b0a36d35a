"""Draw where a step's time goes, from reports of `dit-scale bench step --json`:

    python benchmarks/step_chart.py before=before.json now=now.json --out step-time.png

Each report gives a bar for this code, under the name given to it, and one for each peer and precision.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = "dit_scale"
COLOURS = ["#3b5b92", "#7a9cc6", "#c97b4a", "#8a6bb1", "#5f9e6e", "#c9b458", "#b0b0b0"]


def bars_of(reports: list[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return seconds by kind of work for each bar; of several of one name the last counts."""
    bars, peers = {}, {}
    for name, report in reports:
        precision = report["engine"]["precision"]
        compiled = ", compiled" if report["engine"]["compile"] else ""
        bars[f"{name}\n{precision}{compiled}"] = seconds_of(report, OURS)
        for peer in report["seconds"]:
            if peer != OURS:
                peers[f"{peer}\n{report['peer_precision']}"] = seconds_of(report, peer)
    return peers | bars


def seconds_of(report: dict[str, Any], name: str) -> dict[str, float]:
    """Return the median step's seconds, split as the profiler saw it."""
    median = report["seconds"][name]["median"]
    return {kind: share * median for kind, share in report["kernels"][name].items()}


def draw(bars: dict[str, dict[str, float]], title: str, unit: str, path: Path) -> None:
    """Write stacked bars, one on top of the other, as a PNG."""
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.75 * len(bars)), layout="constrained")
    names = list(bars)[::-1]
    left = dict.fromkeys(names, 0.0)
    for kind, colour in zip(next(iter(bars.values())), COLOURS, strict=True):
        widths = [bars[name][kind] for name in names]
        axes.barh(names, widths, left=[left[name] for name in names], color=colour, label=kind, height=0.6)
        for name, width in zip(names, widths, strict=True):
            left[name] += width
    for name in names:
        axes.text(left[name], name, f" {left[name]:.3g}", va="center")
    axes.set_xlabel(unit)
    axes.set_xlim(right=1.1 * max(left.values()))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("reports", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    options = parser.parse_args()
    reports = []
    for word in options.reports:
        name, _, file = word.partition("=")
        reports.append((name, json.loads(Path(file).read_text())))
    _, last = reports[-1]
    title = f"A training step of {last['model']} at {last['image_size']} px, batch {last['batch_size']}"
    draw(bars_of(reports), title, last["seconds_are"], options.out)


if __name__ == "__main__":
    main()
