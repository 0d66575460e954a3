"""The difference of two versions as one page: plots and all in one file that needs no network."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from tasks.difference import Change, Difference, Paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

A, B = "#3b7dd8", "#d9822b"
# What a plot draws in this colour follows the page, be it light or dark.
INK = "#010203"


def page(difference: Difference) -> str:
    """The whole HTML document; the same text for the same difference."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = value
    environment.filters["number"] = lambda number: f"{number:.4g}"
    environment.filters["summary"] = summary
    template = environment.get_template("difference_page.html")
    return template.render(difference=difference, plots=_plots(difference), lines=_lines)


def value(change: Change, side: str) -> str:
    """What one side has, as people read it."""
    absent = {"a": "added", "b": "removed"}[side]
    if change.kind == absent:
        return "absent"
    found = getattr(change, side)
    text = found if isinstance(found, str) else json.dumps(found)
    return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", r"\1", text)


def summary(paired: Paired) -> str:
    """The paired difference in words."""
    by = paired.worse_by
    word = "worse" if by.value >= 0 else "better"
    return (
        f"in {paired.primary} B is {abs(by.value):.2%} {word}; the difference, worse above 0, is"
        f" {by.low:+.2%} to {by.high:+.2%}, each end with {paired.confidence:.0%} confidence"
    )


def _lines(diff: str) -> list[tuple[str, str]]:
    """Element and text of every line of a unified diff."""
    names = {"+": "ins", "-": "del", "@": "b"}
    return [
        ("span" if line.startswith(("+++", "---")) else names.get(line[:1], "span"), line)
        for line in diff.splitlines()
    ]


def _plots(difference: Difference) -> dict[str, Markup]:
    found = {}
    if difference.paired is not None:
        found["paired"] = _interval(difference.paired)
    if difference.rows is not None:
        rows = difference.rows
        found["rows"] = _bars("rows", "rows", list({**rows.a, **rows.b}), rows.a, rows.b)
    if difference.served is not None:
        a, b = (one.cpu_microseconds for one in difference.served)
        batches = [batch for batch in a if batch in b]
        if batches:
            found["cost"] = _bars("cost", "microseconds of CPU time a row, by batch size", batches,
                                  _each(a), _each(b))  # fmt: skip
    return found


def _each(cost: Mapping[str, float]) -> dict[str, float]:
    return {batch: spent / int(batch) for batch, spent in cost.items()}


def _interval(paired: Paired) -> Markup:
    from matplotlib.figure import Figure

    figure = Figure((7, 1.5), layout="constrained")
    axes = figure.add_subplot(xlabel=f"B is worse than A in {paired.primary} by, %")
    by = paired.worse_by
    axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
    axes.plot([100 * by.low, 100 * by.high], [0, 0], color=B, linewidth=3)
    axes.plot([100 * by.value], [0], "o", color=B, markersize=9)
    reach = 120 * max(abs(by.low), abs(by.high), abs(by.value)) or 1
    axes.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
    label = f"Interval of the paired difference: {by.low:+.2%} to {by.high:+.2%}"
    return _svg(figure, "paired", label)


def _bars(
    name: str, unit: str, labels: Sequence[str], a: Mapping[str, float], b: Mapping[str, float]
) -> Markup:
    from matplotlib.figure import Figure

    figure = Figure((7, 0.9 + 0.5 * len(labels)), layout="constrained")
    axes = figure.add_subplot(xlabel=unit)
    places = np.arange(len(labels))
    for offset, side, colour, values in ((-0.2, "A", A, a), (0.2, "B", B, b)):
        heights = [values.get(label, 0) for label in labels]
        bars = axes.barh(places + offset, heights, 0.36, color=colour, label=side)
        axes.bar_label(bars, fmt="{:,.6g}", padding=3, color=INK)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.legend(frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, name, f"Bars of {unit} for A and B; the table beside has the numbers")


def _svg(figure: "Figure", name: str, label: str) -> Markup:
    """The figure as an element whose ink is the page's and whose ids are its own."""
    import matplotlib as mpl

    for axes in figure.axes:
        axes.tick_params(colors=INK)
        axes.xaxis.label.set_color(INK)
        axes.spines[:].set_color(INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
    packed = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(packed, format="svg", transparent=True, metadata=nothing)
    text = packed.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    opening = Markup('<svg role="img" aria-label="{}"').format(label)
    # Matplotlib has escaped its text.
    return opening + Markup(text.removeprefix("<svg"))
