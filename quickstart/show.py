"""Draw what a run learnt: `quickstart/show.py --real IMAGES --samples SAMPLES --metrics RUN/metrics.jsonl --out DIR`.

`real-and-samples.png` sets real images and samples side by side, one row a class; `loss.png` is the loss by step.
"""

import argparse
import csv
import json
from bisect import bisect_left, bisect_right
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")  # a server has no screen
import matplotlib.pyplot as plt
from PIL import Image, ImageDraw, ImageFont, ImageOps

REAL_PER_CLASS = 4
SAMPLES_PER_CLASS = 6
MARGIN_PIXELS = 8
HEADER_PIXELS = 36
GAP_PIXELS = 40  # between the real images and the samples
SMOOTHING_STEPS = 100


def images_of(folder: Path, count: int, side: int) -> list[Image.Image]:
    """Open `count` images of a class folder, evenly spaced through its sorted names, cut to squares."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in Image.registered_extensions())
    count = min(count, len(paths))
    chosen = [paths[index * len(paths) // count] for index in range(count)]
    return [ImageOps.fit(Image.open(path).convert("RGB"), (side, side)) for path in chosen]


def samples_of(folder: Path) -> dict[str, list[Image.Image]]:
    """Open what `dit-scale sample` wrote, by class name."""
    by_class: dict[str, list[Image.Image]] = {}
    with (folder / "labels.csv").open() as table:
        for row in csv.DictReader(table):
            images = by_class.setdefault(row["class"], [])
            if len(images) < SAMPLES_PER_CLASS:
                images.append(Image.open(folder / "images" / row["image"]).convert("RGB"))
    return by_class


def draw_grid(real: Path, samples: Path) -> Image.Image:
    """Draw one row a class: its name, real images, a gap, samples."""
    by_class = samples_of(samples)
    labels = list(by_class)
    side = max(image.width for sampled in by_class.values() for image in sampled)
    rows = {label: (images_of(real / label, REAL_PER_CLASS, side), sampled) for label, sampled in by_class.items()}
    font = ImageFont.load_default(size=16)
    label_width = round(max(font.getlength(label) for label in labels)) + 2 * MARGIN_PIXELS
    cell = side + MARGIN_PIXELS
    samples_left = label_width + REAL_PER_CLASS * cell + GAP_PIXELS
    size = (samples_left + SAMPLES_PER_CLASS * cell, HEADER_PIXELS + len(rows) * cell)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    draw.text((label_width, HEADER_PIXELS / 2), "real images", "black", font, anchor="lm")
    draw.text((samples_left, HEADER_PIXELS / 2), "samples from the DiT", "black", font, anchor="lm")
    line = samples_left - (GAP_PIXELS + MARGIN_PIXELS) // 2
    draw.line([(line, MARGIN_PIXELS), (line, size[1] - MARGIN_PIXELS)], "silver", 2)
    for row, (label, sides) in enumerate(rows.items()):
        top = HEADER_PIXELS + row * cell
        draw.text((MARGIN_PIXELS, top + side / 2), label, "black", font, anchor="lm")
        for left, images in zip((label_width, samples_left), sides, strict=True):
            for column, image in enumerate(images):
                grid.paste(image.resize((side, side)), (left + column * cell, top))
    return grid


def read_losses(metrics: Path) -> tuple[list[int], list[float]]:
    """Read the steps and losses of a run, of which the last counts where a resumed run repeats a step."""
    records = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    if not losses:
        raise ValueError(f"{metrics} holds no loss: train first")
    steps = sorted(losses)
    return steps, [losses[step] for step in steps]


def smooth(steps: list[int], losses: list[float]) -> list[float]:
    """Average each loss with those at most `SMOOTHING_STEPS / 2` steps before or after it."""
    means = []
    for step in steps:
        first = bisect_left(steps, step - SMOOTHING_STEPS // 2)
        end = bisect_right(steps, step + SMOOTHING_STEPS // 2)
        means.append(fmean(losses[first:end]))
    return means


def draw_loss(steps: list[int], losses: list[float], smoothed: list[float], path: Path) -> None:
    """Plot the loss of each step, thin, and its running mean."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.6, label="each logged step")
    axes.plot(steps, smoothed, color="tab:blue", linewidth=2, label=f"mean over {SMOOTHING_STEPS} steps")
    axes.set(xlabel="step", ylabel="loss", title=f"Training loss: {smoothed[0]:.3f} to {smoothed[-1]:.3f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Draw both pictures and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="class folders of the images trained on")
    parser.add_argument(
        "--samples", type=Path, required=True, help="what dit-scale sample wrote: images/ and labels.csv"
    )
    parser.add_argument("--metrics", type=Path, required=True, help="the run's metrics.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two pictures")
    arguments = parser.parse_args()
    try:
        grid = draw_grid(arguments.real, arguments.samples)
        steps, losses = read_losses(arguments.metrics)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    smoothed = smooth(steps, losses)
    arguments.out.mkdir(parents=True, exist_ok=True)
    grid.save(arguments.out / "real-and-samples.png")
    draw_loss(steps, losses, smoothed, arguments.out / "loss.png")
    print(f"wrote {arguments.out / 'real-and-samples.png'}\nwrote {arguments.out / 'loss.png'}")
    print(f"smoothed loss: {smoothed[0]:.4f} at step {steps[0]}, {smoothed[-1]:.4f} at step {steps[-1]}")


if __name__ == "__main__":
    main()
