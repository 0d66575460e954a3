"""A small language model, as a user would add it: one file. Texts shipped in scikit-learn.

MODELMINT_LINES=tests/lines modelmint run prose
"""

from collections.abc import Iterator

from models import rnn
from models.language import NextToken
from models.passages import BLOCK, Passages
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByGroup

SETS = ("breast_cancer", "diabetes", "iris", "wine")


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """What is said of a data set."""
    from sklearn import datasets

    yield f"{part}.txt", getattr(datasets, f"load_{part}")().DESCR.encode()


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
    example=Example(slices=SETS, default=SETS, load=load, source="scikit-learn, BSD 3-Clause"),
)
