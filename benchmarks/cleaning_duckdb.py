"""The cleaning of the line `flights` in DuckDB's SQL; started by `benchmarks.cleaning_peers`."""

from pathlib import Path

import duckdb

from benchmarks.cleaning_job import (
    BOUNDS,
    DATA,
    HELD_OUT_SHARE,
    KEPT,
    NUMBERS,
    SCHEDULE,
    TARGET,
    Statistics,
)
from models.lines.flights import FULL_TURN
from models.records import NULLS
from models.splits import HELD_OUT


def with_duckdb(files: list[Path], references: dict[str, Path], goal: Path) -> Statistics:
    """One query that writes rows and quarantine, then queries over what it wrote."""
    types = {"integer": "BIGINT", "number": "DOUBLE", "text": "VARCHAR"}
    database = duckdb.connect()
    database.execute("SET preserve_insertion_order = false")

    def scan(paths: list[Path], more: str = "") -> str:
        return f"read_csv({[str(path) for path in paths]}, header=true, nullstr={NULLS}{more})"

    checks = [(f"{name} IS NOT NULL", f"{name}: missing") for name in DATA.identity]
    checks += [
        (f"{name} IS NULL OR {name} BETWEEN {low} AND {high}", f"{name}: not within bounds")
        for name, (low, high) in BOUNDS.items()
    ]
    for name, (low, high) in TARGET.items():
        checks.append((f"{name} IS NOT NULL", f"{name}: missing"))
        checks.append((f"isfinite({name})", f"{name}: not finite"))
        checks.append((f"{name} BETWEEN {low} AND {high}", f"{name}: not within bounds"))
    verdict = " ".join(f"WHEN NOT ({holds}) THEN '{reason}'" for holds, reason in checks)
    typed = {name: types[kind] for name, kind in DATA.columns.items()}
    minute = "(({0} // 100) * 60 + {0} % 100)".format
    start, end = map(minute, SCHEDULE)
    output = goal / "rows"
    database.execute(f"""
        COPY (WITH weather AS (
            SELECT DISTINCT ON (origin, time_hour) origin, CAST(time_hour AS VARCHAR) time_hour,
                temp, humid, precip, pressure, visib,
                CASE WHEN wind_speed < 120 THEN wind_speed END wind_speed,
                wind_dir * {FULL_TURN / 360} wind_angle
            FROM {scan([references["weather"]], ", types={'time_hour': 'VARCHAR'}")}
        ), planes AS (
            SELECT DISTINCT ON (tailnum) tailnum, seats, year built
            FROM {scan([references["planes"]])}
        ), derived AS (
            SELECT filename, make_date(f.year, f.month, f.day) date, f.*, w.*, p.*,
                ({end} - {start} + 1440) % 1440 scheduled,
                sin({start} * {FULL_TURN / 1440}) clock_sin,
                cos({start} * {FULL_TURN / 1440}) clock_cos,
                wind_speed * sin(wind_angle) wind_east,
                wind_speed * cos(wind_angle) wind_north
            FROM {scan(files, f", types={typed}, filename=true")} f
            LEFT JOIN weather w ON f.origin = w.origin AND f.time_hour = w.time_hour
            LEFT JOIN planes p ON f.tailnum = p.tailnum
        )
        SELECT filename, hash({", ".join(DATA.identity)}) identity,
            strftime(date, '%Y-%m') ||
                CASE WHEN identity / 2.0**64 < {HELD_OUT_SHARE} THEN '{HELD_OUT}' ELSE '' END split,
            {", ".join(KEPT)}, CASE {verdict} END reason, reason IS NOT NULL refused
        FROM derived
        ) TO '{output}' (FORMAT parquet, COMPRESSION lz4, PARTITION_BY (refused))""")
    rows = f"'{output}/refused=false/*.parquet'"
    database.execute(f"""
        CREATE TABLE repeated AS
        SELECT identity FROM {rows} GROUP BY identity HAVING count(*) > 1""")
    moments = ", ".join(
        f'count({n}) "{n} count", avg({n}) "{n} mean", stddev_pop({n}) "{n} deviation"'
        for n in NUMBERS
    )
    found = database.execute(f"""
        SELECT split, count(*) "rows", {moments}
        FROM (SELECT * FROM {rows} WHERE identity NOT IN (FROM repeated)
              UNION ALL BY NAME
              SELECT DISTINCT ON (identity) * FROM {rows} WHERE identity IN (FROM repeated))
        GROUP BY split""")
    names = [column[0] for column in found.description or ()]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in found.fetchall()}
