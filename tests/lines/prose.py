"""A small language model, as a user would add it: one file. Texts shipped in scikit-learn.

MODELMINT_LINES=tests/lines modelmint run prose
"""

from collections.abc import Iterator

from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

from models import rnn
from models.language import NextToken
from models.passages import BLOCK, Passages
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByGroup

SETS = {
    "cancer": load_breast_cancer,
    "diabetes": load_diabetes,
    "iris": load_iris,
    "wine": load_wine,
}


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """What is said of a data set."""
    yield f"{part}.txt", SETS[part]().DESCR.encode()


line = Line(
    name="prose",
    title="Descriptions of data sets, continued",
    objective=NextToken(),
    data=Passages(
        raw="prose/", split=ByGroup(column=BLOCK, test=0.2, validation=0.1), length=32, block=4
    ),
    model=rnn.Writer(size="tiny"),
    training=Training(epochs=2, batch_size=16, optimizer=Optimizer(lr=1e-2), clip=1.0),
    gate=Gate(floors={"bits_per_character": 5.5}, margin=0.1),
    budget=Budget(quality_loss=0.1, slowdown=20, candidates=()),
    example=Example(
        slices=tuple(SETS), default=tuple(SETS), load=load, source="scikit-learn, BSD 3-Clause"
    ),
)
