"""Charts as inline SVG, drawn by matplotlib, which is imported when the first chart is drawn.

What lives here: four drawings that reports share. What does not: what the figures mean.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
BLUE, ORANGE, GREY, RED = "#20639b", "#d1772a", "#9aa5b1", "#b3261e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a line chart: equal numbers of x and y values."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = BLUE
    marker: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One value with its interval, in [0, 1] unless the chart says otherwise."""

    value: float
    low: float
    high: float


def lines(series: Sequence[Line], *, x_label: str, y_label: str, width: float = 7.4, height: float = 2.9) -> str:
    """Return a line chart as SVG text."""

    def draw(axes: Axes) -> None:
        for line in series:
            axes.plot(
                line.x, line.y, color=line.color, label=line.name, lw=1.4, marker="o" if line.marker else None, ms=4
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) > 1:
            axes.legend(frameon=False)

    return _svg(draw, width=width, height=height)


def bars(names: Sequence[str], values: Sequence[float], *, x_label: str, notes: Sequence[str] | None = None) -> str:
    """Return horizontal bars, the first on top, each with its note (the value by default) behind it."""

    def draw(axes: Axes) -> None:
        places = list(range(len(names)))[::-1]
        axes.barh(places, list(values), color=BLUE, height=0.62)
        axes.set_yticks(places, list(names))
        axes.set_xlabel(x_label)
        top = max(values, default=1.0) or 1.0
        axes.set_xlim(0, top * 1.3)
        for place, value, note in zip(places, values, notes or [f"{v:,.0f}" for v in values], strict=True):
            axes.text(value + top * 0.012, place, note, va="center", fontsize=8.5)

    return _svg(draw, width=7.4, height=0.5 + 0.3 * max(len(names), 2))


def forest(names: Sequence[str], base: Sequence[Interval | None], tuned: Sequence[Interval | None]) -> str:
    """Return a forest plot: for each name the base's and the tuned model's value with its interval, on [0, 1]."""

    def draw(axes: Axes) -> None:
        for i, name_pair in enumerate(zip(base, tuned, strict=True)):
            place = len(names) - 1 - i
            for interval, shift, color in ((name_pair[0], 0.14, ORANGE), (name_pair[1], -0.14, BLUE)):
                if interval is None:
                    continue
                axes.plot([interval.low, interval.high], [place + shift] * 2, color=color, lw=2)
                axes.plot([interval.value], [place + shift], "o", color=color, ms=5)
        axes.set_yticks(range(len(names)), list(names)[::-1])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.plot([], [], color=ORANGE, marker="o", label="base")
        axes.plot([], [], color=BLUE, marker="o", label="tuned")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return _svg(draw, width=7.4, height=0.9 + 0.38 * max(len(names), 2))


def _svg(draw: Callable[[Axes], None], *, width: float, height: float) -> str:
    # The object interface, not pyplot: no global state, no display, safe in threads. A fixed salt keeps the bytes equal
    # from run to run.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "svg.hashsalt": "tunesmith",
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6eaee",
        "axes.axisbelow": True,
        "axes.edgecolor": GREY,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    # The prolog and the RDF block name hosts; nothing in a self-contained page does.
    text = out.getvalue()
    return _METADATA.sub("", text[text.index("<svg") :])
