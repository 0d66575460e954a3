"""Pictures of drift: how a column was distributed in training, and how it is now."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from tasks.two_samples import Finding

SHOWN = 12
"""Values of a text that have a bar."""


def histograms(findings: Sequence[tuple[Finding, pl.Series, pl.Series]]) -> bytes:
    """PNG with a plot for each finding, of its column before and now."""
    from matplotlib.figure import Figure

    columns = min(3, len(findings))
    rows = -(-len(findings) // columns)
    figure = Figure((4 * columns, 2.6 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for (finding, old, new), axes in zip(findings, places, strict=False):
        draw = _bars if old.dtype == pl.String else _steps
        draw(axes, old, new, finding.sample)
        mark = "drift" if finding.drifted else "no drift"
        axes.set_title(f"{finding.name}: {mark}, p {finding.adjusted:.2g}", fontsize=9)
        axes.legend(fontsize=7)
    packed = io.BytesIO()
    figure.savefig(packed, format="png", dpi=110, metadata={"Software": None})
    return packed.getvalue()


def _steps(axes: Any, old: pl.Series, new: pl.Series, sample: str) -> None:
    values = [s.drop_nulls().to_numpy() for s in (old, new)]
    both = np.concatenate(values)
    ends = np.quantile(both, [0.005, 0.995]) if len(both) else np.zeros(2)
    bins = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, 40)
    for found, label in zip(values, ("before", sample), strict=True):
        axes.hist(found, bins, density=True, histtype="step", label=label)


def _bars(axes: Any, old: pl.Series, new: pl.Series, sample: str) -> None:
    names = pl.concat([old, new]).value_counts(sort=True).head(SHOWN).get_column(old.name).to_list()
    for shift, series, label in ((-0.2, old, "before"), (0.2, new, sample)):
        shares = [float((series == name).sum()) / max(1, len(series)) for name in names]
        axes.bar(np.arange(len(names)) + shift, shares, 0.4, label=label)
    axes.set_xticks(range(len(names)), [str(name) for name in names], rotation=60, fontsize=7)
