"""The page's charts, as plotly draws them; colours that follow light and dark are set by the page."""

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.utils import PlotlyJSONEncoder

from dit_scale.report.reading import TERM, Curve, Record, Restart

_BLUE, _ORANGE, _GREEN, _RED = "#3b82f6", "#f59e0b", "#10b981", "#ef4444"
_SMOOTHING = 0.01
"""A smoothed curve is an average whose memory is this part of the run."""
_TIMES = (
    ("data_seconds", "waiting for data", _ORANGE),
    ("compute_seconds", "compute", _BLUE),
    ("save_seconds", "saving", _GREEN),
)


@dataclass(frozen=True)
class Chart:
    """A chart and what it is called."""

    name: str
    title: str
    figure: str
    """Plotly's JSON."""


def charts_of(record: Record) -> list[Chart]:
    """Return the charts for which there is something to draw."""
    curves, restarts = record.curves, record.restarts
    terms = {name.removeprefix(TERM): curve for name, curve in sorted(curves.items()) if name.startswith(TERM)}
    found = [
        _noisy("loss", "Loss", curves["loss"], restarts, is_log=_spans(curves["loss"], 3.0)),
        _plain("losses", "Terms of the loss", terms, restarts),
        _noisy("grad-norm", "Gradient norm", curves["grad_norm"], restarts, is_log=True),
        _plain("validation", "Validation loss", {"validation loss": curves["validation_loss"]}, restarts),
        *_evaluations(record),
        _plain("throughput", "Images a second", {"images/s": curves["images_per_second"]}, restarts, from_zero=True),
        _plain("mfu", "Model FLOPs utilisation", {"MFU": curves["mfu"]}, restarts, from_zero=True),
        _times(curves, restarts),
        _plain("learning-rate", "Learning rate", {"learning rate": curves["learning_rate"]}, restarts, from_zero=True),
    ]
    return [chart for chart in found if chart is not None]


def smoothed(values: list[float], memory: float = _SMOOTHING) -> list[float]:
    """Return an exponential average without the bias of its beginning."""
    keep = 1.0 - 1.0 / max(1.0, memory * len(values))
    total, weight, found = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(total / weight)
    return found


def _noisy(name: str, title: str, curve: Curve, restarts: list[Restart], is_log: bool) -> Chart | None:
    """A number that jumps from step to step: its band of extremes, and a smoothed line."""
    if not curve.steps:
        return None
    figure = go.Figure()
    if curve.least != curve.most:
        band = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=curve.steps, y=curve.most, name="most", **band)
        figure.add_scatter(
            x=curve.steps, y=curve.least, name="least", fill="tonexty", fillcolor="rgba(59,130,246,0.22)", **band
        )
    else:
        figure.add_scatter(
            x=curve.steps, y=curve.mean, name="each step", line={"color": _BLUE, "width": 1}, opacity=0.4
        )
    line = {"color": _BLUE, "width": 2}
    figure.add_scatter(x=curve.steps, y=smoothed(curve.mean), name="smoothed", mode="lines", line=line)
    return _finish(name, title, figure, restarts, is_log=is_log)


def _plain(
    name: str, title: str, curves: dict[str, Curve], restarts: list[Restart], from_zero: bool = False
) -> Chart | None:
    curves = {label: curve for label, curve in curves.items() if curve.steps}
    if not curves:
        return None
    figure = go.Figure()
    for (label, curve), colour in zip(curves.items(), (_BLUE, _ORANGE, _GREEN, _RED) * len(curves), strict=False):
        mode = "lines" if len(curve.steps) > 60 else "lines+markers"
        figure.add_scatter(x=curve.steps, y=curve.mean, name=label, mode=mode, line={"color": colour, "width": 2})
    return _finish(name, title, figure, restarts, from_zero=from_zero, has_legend=len(curves) > 1)


def _times(curves: dict[str, Curve], restarts: list[Restart]) -> Chart | None:
    figure = go.Figure()
    for name, label, colour in _TIMES:
        curve = curves[name]
        if curve.steps:
            style = {"mode": "lines", "line": {"color": colour, "width": 1}, "stackgroup": "time"}
            figure.add_scatter(x=curve.steps, y=curve.mean, name=label, **style)
    if not figure.data:
        return None
    return _finish("times", "Seconds a step, of the slowest rank in each", figure, restarts, from_zero=True)


def _evaluations(record: Record) -> list[Chart | None]:
    """A chart for each metric, since their scales have nothing in common."""
    curves: dict[str, Curve] = {}
    for result in record.evaluations:
        for name, value in result["metrics"].items():
            if isinstance(value, int | float):
                curves.setdefault(str(name), Curve()).add(result["step"], [float(value)])
    return [
        _plain(f"evaluation-{number}", f"Evaluation: {name}", {name: curve}, record.restarts)
        for number, (name, curve) in enumerate(curves.items())
    ]


def _finish(
    name: str,
    title: str,
    figure: go.Figure,
    restarts: list[Restart],
    is_log: bool = False,
    from_zero: bool = False,
    has_legend: bool = True,
) -> Chart:
    for restart in restarts:
        figure.add_vline(x=restart.step, line={"color": _RED, "width": 1, "dash": "dot"})
    if restarts:  # hovering over the top of a line tells why
        figure.add_scatter(
            x=[restart.step for restart in restarts],
            y=[1.0] * len(restarts),
            yaxis="y2",
            mode="markers",
            marker={"color": _RED, "symbol": "triangle-down", "size": 8},
            name="restart",
            text=[f"after {restart.cause}" for restart in restarts],
            hovertemplate="step %{x}: began again %{text}<extra></extra>",
        )
    figure.update_layout(
        template="none",
        margin={"l": 56, "r": 12, "t": 8, "b": 40},
        height=300,
        showlegend=has_legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified" if not restarts else "closest",
        xaxis={"title": {"text": "step"}, "zeroline": False},
        yaxis={
            "zeroline": False,
            "type": "log" if is_log else "linear",
            "rangemode": "tozero" if from_zero else "normal",
        },
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    )
    return Chart(name, title, _for_script(figure.to_plotly_json()))


def _spans(curve: Curve, factor: float) -> bool:
    """Whether a positive curve goes over more than this factor, and is better seen on a logarithmic axis."""
    return bool(curve.least) and min(curve.least) > 0 and max(curve.most) / min(curve.least) > factor


def _for_script(value: Any) -> str:
    """Return JSON that holds nothing a script element could end at, or begin a comment with."""
    return json.dumps(value, cls=PlotlyJSONEncoder).replace("<", "\\u003c")
