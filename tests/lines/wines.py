"""A line with a family of its own, whose network has an operation that ONNX lacks. 178 wines.

MODELMINT_LINES=tests/lines modelmint run wines
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import polars as pl

from models.data import Features
from models.objectives import Classification
from models.spec import Budget, Example, Family, Gate, Line, Optimizer, Training
from models.splits import ByHash
from models.tables import Number, Tables

if TYPE_CHECKING:
    from torch import nn

CULTIVARS = ("0", "1", "2")
FEATURES = (
    "alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
)  # fmt: skip
ORDER = 4


class Levels(Family):
    """The eigenvalues of a symmetric matrix that the features span, then a dense layer."""

    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network: `features.inputs` in order -> float32 [n, width]."""
        import torch
        from torch import Tensor, nn

        from models.layers import Chain, table_input

        class Spectrum(nn.Module):
            """float32 [n, ORDER * ORDER] -> eigenvalues float32 [n, ORDER]."""

            def forward(self, x: Tensor) -> Tensor:
                square = x.reshape(-1, ORDER, ORDER)
                found: Tensor = torch.linalg.eigvalsh(square + square.transpose(1, 2))
                return found

        first = table_input(features)
        spanned = nn.Linear(first.width, ORDER * ORDER)
        return Chain(first, spanned, Spectrum(), nn.Linear(ORDER, width))


def clean(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    """As they are."""
    del references
    return rows


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """All wines."""
    from sklearn.datasets import load_wine

    data = load_wine()
    table = pl.DataFrame(data.data, schema=data.feature_names, orient="row").select(
        *FEATURES, bottle=pl.int_range(pl.len()), cultivar=pl.Series(data.target).cast(pl.String)
    )
    yield f"{part}.csv", table.write_csv().encode()


line = Line(
    name="wines",
    title="Cultivars of Italian wines",
    objective=Classification(target="cultivar", labels=CULTIVARS),
    data=Tables(
        raw="wines/",
        columns={
            "bottle": "integer",
            "cultivar": "text",
            **dict.fromkeys(FEATURES, "number"),
        },
        clean=clean,
        identity=("bottle",),
        split=ByHash(test=0.25, validation=0.15),
        numbers=tuple(Number(name=name, unit="1") for name in FEATURES),
    ),
    model=Levels(),
    training=Training(epochs=40, batch_size=16, optimizer=Optimizer(lr=1e-2)),
    gate=Gate(floors={"accuracy": 0.6}, margin=0.1),
    budget=Budget(quality_loss=0.1, slowdown=20),
    example=Example(slices=("all",), default=("all",), load=load, source="in scikit-learn, CC BY"),
)
