"""A third line, as a user would add it: one file. 442 patients, shipped in scikit-learn.

MODELMINT_LINES=tests/lines modelmint run diabetes
"""

from collections.abc import Iterator, Mapping

import polars as pl

from models import mlp
from models.objectives import Regression
from models.spec import Budget, Example, Gate, Line, Training
from models.splits import ByHash
from models.tables import Category, Number, Tables

HALVES = ("first", "second")


def clean(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    """The sex as a word."""
    del references
    return rows.with_columns(
        sex=pl.when(pl.col("sex_code") > 0).then(pl.lit("b")).otherwise(pl.lit("a"))
    )


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """Half of the patients."""
    # Here and not above: every process of a run reads this file, and only `land` needs the data.
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=True)
    table = pl.DataFrame(data.data, schema=data.feature_names, orient="row").with_columns(
        pl.Series("progression", data.target), patient=pl.int_range(pl.len())
    )
    table = table.rename({"sex": "sex_code"})
    half = HALVES.index(part)
    yield f"{part}.csv", table.filter(pl.col("patient") % 2 == half).write_csv().encode()


line = Line(
    name="diabetes",
    title="Progression of diabetes after a year",
    objective=Regression(target="progression", unit="1", low=0, high=1000),
    data=Tables(
        raw="diabetes/",
        columns={
            "patient": "integer",
            "sex_code": "number",
            "age": "number",
            "bmi": "number",
            "bp": "number",
            "s5": "number",
            "progression": "number",
        },
        clean=clean,
        identity=("patient",),
        split=ByHash(test=0.25, validation=0.15),
        numbers=tuple(Number(name=name, unit="1") for name in ("age", "bmi", "bp", "s5")),
        categories=(Category(name="sex", minimum=5),),
    ),
    model=mlp.Spec(size="tiny"),
    training=Training(epochs=30, batch_size=32),
    gate=Gate(floors={"rmse": 75.0}, margin=0.05),
    budget=Budget(quality_loss=0.1, slowdown=20),
    example=Example(
        slices=HALVES, default=("first",), load=load, source="Efron et al. 2004, in scikit-learn"
    ),
)
