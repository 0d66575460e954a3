"""CIFAR-10: photographs of ten kinds of things, 32 x 32 pixels, in the python batches.

No package carries the data. Take `cifar-10-python.tar.gz` from its author's page
(https://www.cs.toronto.edu/~kriz/cifar.html), unpack it, and name the folder:

CIFAR10=cifar-10-batches-py modelmint land cifar
modelmint run cifar                                 --set model.size=lenet for the classic tutorial
"""

import os
from collections.abc import Iterator
from pathlib import Path

from models import cnn
from models.augmentation import Affine
from models.cifar import BATCHES
from models.images import Images, ImageSize
from models.objectives import Classification
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import Given

SETTING = "CIFAR10"
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """One batch from the folder that CIFAR10 names; raises LookupError where it is not."""
    folder = os.environ.get(SETTING)
    if not folder or not (Path(folder) / part).is_file():
        raise LookupError(
            f"{part} is not at hand: unpack cifar-10-python.tar.gz (www.cs.toronto.edu/~kriz/"
            f"cifar.html) and set {SETTING} to its folder cifar-10-batches-py"
        )
    yield part, (Path(folder) / part).read_bytes()


line = Line(
    name="cifar",
    title="Photographs of ten kinds of things",
    objective=Classification(target="label", labels=CLASSES),
    data=Images(
        raw="cifar/",
        size=ImageSize(channels=3, height=32, width=32),
        classes=CLASSES,
        split=Given(column="part", test="test"),
    ),
    model=cnn.Spec(size="resnet", dropout=0.0),
    training=Training(
        epochs=20,
        batch_size=128,
        optimizer=Optimizer(lr=3e-3),
        augmentation=Affine(degrees=0, scale=0.05, shift=4, flip=True),
    ),
    gate=Gate(margin=0.005, slices={"label": 0.05}),
    budget=Budget(quality_loss=0.01),
    example=Example(
        slices=BATCHES,
        default=BATCHES,
        load=load,
        source="CIFAR-10 (A. Krizhevsky, 2009); placed by you, its page states no licence",
    ),
)
