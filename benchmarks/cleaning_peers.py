"""The cleaning of the line `flights` as one would write it in pandas, Polars and DuckDB.

    python -m benchmarks.cleaning_peers polars FOLDER GOAL

Started by `benchmarks.cleaning`, each in a fresh process. From the CSV files in FOLDER to Parquet
files in GOAL: parse, join weather and planes, derive the same columns, quarantine by the same
checks with a reason, drop repeated records, label the split, and take count, mean and deviation of
every number for every label. Bounds and column types come from the line itself. Threads: as many
as the library takes. Which of two equal records stays is left to the library, as is its hash.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from benchmarks.cleaning_job import (
    BOUNDS,
    DATA,
    HELD_OUT_SHARE,
    KEPT,
    NUMBERS,
    OBJECTIVE,
    SCHEDULE,
    TARGET,
    Statistics,
)
from models.lines.flights import FULL_TURN
from models.records import NULLS
from models.splits import HELD_OUT


def with_polars(
    files: list[Path] | str, references: dict[str, Path], goal: Path | str
) -> Statistics:
    """One lazy query that writes rows and quarantine, on the streaming engine."""
    import polars as pl

    types = {"integer": pl.Int64, "number": pl.Float64, "text": pl.String}
    schema = {name: types[kind] for name, kind in DATA.columns.items()}
    tables = {name: DATA.reference(name, path.read_bytes()) for name, path in references.items()}
    raw = pl.scan_csv(
        files,
        schema_overrides=schema,
        null_values=NULLS,
        row_index_name="row",
        include_file_paths="object",
    ).select("object", "row", *schema)
    verdict: Any = pl
    for check in [*DATA.checks(), *OBJECTIVE.checks()]:
        reason = pl.lit(f"{check.field}: {check.reason}")
        verdict = verdict.when(~check.holds.fill_null(False)).then(reason)
    judged = _derived(raw, tables).with_columns(reason=verdict.otherwise(None))
    identity = pl.struct(DATA.identity).hash()
    month = pl.col("date").dt.strftime("%Y-%m")
    split = pl.when(identity / 2.0**64 < HELD_OUT_SHARE).then(month + HELD_OUT).otherwise(month)
    refused = pl.col("reason").is_not_null()
    pl.collect_all(
        [
            judged.filter(~refused)
            .select(*KEPT, identity=identity, split=split)
            .sink_parquet(f"{goal}/rows.parquet", compression="lz4", lazy=True),
            judged.filter(refused)
            .select("object", "row", "reason")
            .sink_parquet(f"{goal}/refused.parquet", compression="lz4", lazy=True),
        ],
        engine="streaming",
    )
    rows = pl.scan_parquet(f"{goal}/rows.parquet")
    repeated = ~rows.select("identity").collect().get_column("identity").is_first_distinct()
    repeated.arg_true().to_frame("position").write_parquet(f"{goal}/repeated.parquet")
    if repeated.any():
        rows = rows.filter(~repeated)
    moments = [
        each
        for name in NUMBERS
        for each in (
            pl.col(name).count().alias(f"{name} count"),
            pl.col(name).mean().alias(f"{name} mean"),
            pl.col(name).std(ddof=0).alias(f"{name} deviation"),
        )
    ]
    found = rows.group_by("split").agg(pl.len().alias("rows"), *moments)
    return {row.pop("split"): row for row in found.collect(engine="streaming").to_dicts()}


def _derived(rows: Any, tables: dict[str, Any]) -> Any:
    """What the line's `clean` does, without keeping the order of the rows: twice as fast."""
    import polars as pl

    weather = (
        tables["weather"]
        .lazy()
        .select(
            "origin", "time_hour", "temp", "humid", "precip", "pressure", "visib",
            wind_speed=pl.when(pl.col("wind_speed") < 120).then(pl.col("wind_speed")),
            wind_angle=pl.col("wind_dir") * (FULL_TURN / 360),
        )
        .unique(["origin", "time_hour"], keep="any")
    )  # fmt: skip
    planes = tables["planes"].lazy().select("tailnum", "seats", built=pl.col("year"))
    start, end = (pl.col(c) // 100 * 60 + pl.col(c) % 100 for c in SCHEDULE)
    return (
        rows.join(weather, ["origin", "time_hour"], how="left")
        .join(planes.unique("tailnum", keep="any"), "tailnum", how="left")
        .with_columns(
            date=pl.date("year", "month", "day"),
            scheduled=(end - start + 1440) % 1440,
            clock_sin=(start * (FULL_TURN / 1440)).sin(),
            clock_cos=(start * (FULL_TURN / 1440)).cos(),
            wind_east=pl.col("wind_speed") * pl.col("wind_angle").sin(),
            wind_north=pl.col("wind_speed") * pl.col("wind_angle").cos(),
        )
    )


def with_pandas(files: list[Path], references: dict[str, Path], goal: Path) -> Statistics:
    """All files in one frame."""
    import numpy as np
    import pandas as pd

    types = {"integer": "int64", "number": "float64", "text": "str"}
    wanted = {name: types[kind] for name, kind in DATA.columns.items()}
    read: dict[str, Any] = {"na_values": NULLS, "keep_default_na": False}
    weather = pd.read_csv(references["weather"], **read)
    weather["wind_speed"] = weather["wind_speed"].where(weather["wind_speed"] < 120)
    angle = weather["wind_dir"] * (FULL_TURN / 360)
    weather["wind_east"] = weather["wind_speed"] * np.sin(angle)
    weather["wind_north"] = weather["wind_speed"] * np.cos(angle)
    weather = weather.drop_duplicates(["origin", "time_hour"])
    joined = [c for c in weather.columns if c in BOUNDS]
    planes = pd.read_csv(references["planes"], **read).drop_duplicates("tailnum")
    planes = planes.rename(columns={"year": "built"})[["tailnum", "seats", "built"]]
    parts = []
    for path in files:
        part = pd.read_csv(path, usecols=list(wanted), dtype=cast(Any, wanted), **read)
        parts.append(part.assign(object=path.name, row=np.arange(len(part))))
    rows = pd.concat(parts, ignore_index=True)
    del parts
    rows = rows.merge(weather[["origin", "time_hour", *joined]], "left", ["origin", "time_hour"])
    rows = rows.merge(planes, "left", "tailnum")
    start = rows["sched_dep_time"] // 100 * 60 + rows["sched_dep_time"] % 100
    end = rows["sched_arr_time"] // 100 * 60 + rows["sched_arr_time"] % 100
    rows["date"] = pd.to_datetime(rows[["year", "month", "day"]])
    rows["scheduled"] = (end - start + 1440) % 1440
    rows["clock_sin"] = np.sin(start * (FULL_TURN / 1440))
    rows["clock_cos"] = np.cos(start * (FULL_TURN / 1440))
    failed = [(rows[name].isna(), f"{name}: missing") for name in DATA.identity]
    for name, (low, high) in BOUNDS.items():
        failed.append((~(rows[name].isna() | rows[name].between(low, high)), f"{name}: bounds"))
    for name, (least, most) in TARGET.items():
        failed.append((rows[name].isna(), f"{name}: missing"))
        failed.append((~np.isfinite(rows[name]), f"{name}: not finite"))
        failed.append((~rows[name].between(least, most), f"{name}: bounds"))
    number = np.select([f for f, _ in failed], range(len(failed)), len(failed))
    reason = pd.Series([*(text for _, text in failed), None], dtype="str")
    rows["reason"] = reason.take(number).to_numpy()
    good = number == len(failed)
    rows.loc[~good, ["object", "row", "reason"]].to_parquet(
        goal / "refused.parquet", compression="lz4"
    )
    rows = rows[good].drop_duplicates(list(DATA.identity))
    rows["identity"] = pd.util.hash_pandas_object(rows[list(DATA.identity)], index=False)
    month = rows["date"].dt.strftime("%Y-%m")
    rows["split"] = month.where(rows["identity"] / 2.0**64 >= HELD_OUT_SHARE, month + HELD_OUT)
    rows[["identity", "split", *KEPT]].to_parquet(goal / "rows.parquet", compression="lz4")
    groups = rows.groupby("split")[NUMBERS]
    count, mean, deviation = groups.count(), groups.mean(), groups.std(ddof=0)
    sizes = rows.groupby("split").size()
    return {
        str(split): {"rows": int(sizes[split])}
        | {f"{n} count": int(count.at[split, n]) for n in NUMBERS}
        | {f"{n} mean": float(mean.at[split, n]) for n in NUMBERS}
        | {f"{n} deviation": float(deviation.at[split, n]) for n in NUMBERS}
        for split in sizes.index
    }


def with_duckdb(files: list[Path], references: dict[str, Path], goal: Path) -> Statistics:
    """One query that writes rows and quarantine, then queries over what it wrote."""
    from benchmarks.cleaning_duckdb import with_duckdb as clean

    return clean(files, references, goal)


def with_polars_over_s3(files: list[Path], references: dict[str, Path], goal: Path) -> Statistics:
    """Polars reading and writing the bucket Modelmint uses; reference tables stay local."""
    del files, goal
    # By name: to import our store would cost every peer its memory.
    bucket = f"s3://{os.environ['MODELMINT_BUCKET']}"
    return with_polars(f"{bucket}/raw/{DATA.raw}*.csv", references, f"{bucket}/polars")


PEERS: dict[str, Callable[[list[Path], dict[str, Path], Path], Statistics]] = {
    "pandas": with_pandas,
    "polars": with_polars,
    "polars over s3": with_polars_over_s3,
    "duckdb": with_duckdb,
}


def main(name: str, folder: Path, goal: Path) -> None:
    """Clean and print seconds of work, rows, and every number's mean over all rows, as JSON."""
    files = sorted(folder.glob("*.csv"))
    references = {name: folder / location for name, location in DATA.references.items()}
    __import__(name.partition(" ")[0])
    start = time.perf_counter()
    found = PEERS[name](files, references, goal)
    seconds = time.perf_counter() - start
    means = {}
    for n in NUMBERS:
        values = [(label[f"{n} count"], label[f"{n} mean"]) for label in found.values()]
        means[n] = sum(c * m for c, m in values if c) / sum(c for c, _ in values)
    rows = sum(label["rows"] for label in found.values())
    print(json.dumps({"seconds": seconds, "rows": rows, "means": means}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
