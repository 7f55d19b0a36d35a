"""A comparison sheet: the same images under other settings, side by side in one labelled picture."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dit_scale.config import SampleConfig, load_options
from dit_scale.diffusion.solvers import SOLVERS, options_of
from dit_scale.distributed.runtime import World, process_group
from dit_scale.distributed.sharing import gather_on_rank_zero, shares
from dit_scale.errors import InputError, nearest
from dit_scale.files import make_writable_folder, write_json
from dit_scale.pictures import labelled_grid, tiled, write_png
from dit_scale.sampling.drawing import SamplingSettings
from dit_scale.sampling.sampler import Sampler

SHEET = "sheet.png"


@dataclass(frozen=True)
class Axis:
    """A setting and the values that the sheet's columns, or its rows, have."""

    name: str
    values: tuple[str, ...]


def parse_axis(text: str) -> Axis:
    """Read ``NAME=A,B,C``; raises InputError where it is not of that form."""
    name, _, values = text.partition("=")
    found = tuple(value.strip() for value in values.split(",") if value.strip())
    if not found:
        raise InputError(f"--grid-over '{text}' names no values; write it like cfg-scale=1,1.5,4")
    return Axis(name.strip(), found)


def draw_sheet(
    sampler: Sampler, settings: SamplingSettings, labels: list[int], axes: Sequence[Axis], out: Path, world: World
) -> None:
    """Write ``out/sheet.png`` and its protocol, the cells shared among the ranks (collective)."""
    if len(axes) > 2:
        raise InputError(f"a sheet has columns and rows, but --grid-over is given {len(axes)} times; give it twice")
    across, down = axes[0], axes[1] if len(axes) == 2 else Axis("", ("",))
    cells = [
        _with(_with(settings, across, value), down, other)
        for other, value in itertools.product(down.values, across.values)
    ]
    for cell in cells:
        sampler.check(cell)  # all of them before the first is drawn
    make_writable_folder(out, "output folder")
    indices = list(range(len(labels)))
    with process_group(world, sampler.device):
        mine = {
            number: tiled(list(sampler.images(labels, indices, cells[number])))
            for share in shares(range(len(cells)), 1, world)
            for number in share.own
        }
        blocks = gather_on_rank_zero(mine, world)
    if not world.is_rank_zero:
        return
    columns = len(across.values)
    rows = [
        (_label(down, value), [blocks[row * columns + column] for column in range(columns)])
        for row, value in enumerate(down.values)
    ]
    headings = [_label(across, value) for value in across.values]
    write_png(labelled_grid(rows, headings=headings), out / SHEET)
    write_json(
        out / "sheet.json",
        sampler.described()
        | {"labels": [sampler.class_names.title(label) for label in labels]}
        | {"cells": [sampler.settings_described(cell) for cell in cells]},
    )
    print(f"{len(cells)} x {len(labels)} images in {out / SHEET}")


def _label(axis: Axis, value: str) -> str:
    return f"{axis.name}={value}" if axis.name else ""


_SEVERAL_VALUES = ("solver_options", "guidance_interval")
_FIELDS = [field.name.replace("_", "-") for field in fields(SampleConfig) if field.name not in _SEVERAL_VALUES]
_OPTIONS = sorted({option.replace("_", "-") for solver in SOLVERS for option in options_of(solver)})


def _with(settings: SamplingSettings, axis: Axis, value: str) -> SamplingSettings:
    """Return the settings with one of them changed."""
    if not axis.name:
        return settings
    name = axis.name.replace("-", "_")
    if axis.name in _OPTIONS:
        options = load_options(SampleConfig, {"solver_options": {name: value}}, _spell).solver_options
        return replace(settings, solver_options=settings.solver_options | options)
    if axis.name not in _FIELDS:
        raise InputError(f"--grid-over knows no '{axis.name}'{nearest(axis.name, [*_FIELDS, *_OPTIONS])}")
    return replace(settings, **{name: getattr(load_options(SampleConfig, {name: value}, _spell), name)})


def _spell(key: str) -> str:
    return f"--grid-over {key.rpartition('.')[2].replace('_', '-')}"
