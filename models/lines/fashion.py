"""Fashion-MNIST: articles of clothing, 28 x 28 pixels, in the idx files they are published in.

apt-get install dataset-fashion-mnist     or set FASHION_MNIST to a folder with the four files
modelmint land fashion
modelmint run fashion       about six minutes of one core; expect accuracy about 0.925

LeNet without augmentation reaches 0.908 in 4 epochs, half a minute of CPU time:
--set model.size=lenet --set model.dropout=0.1 --set training.epochs=4 --set training.batch_size=64
--set training.augmentation=null --set training.optimizer.lr=0.004
"""

import os
from collections.abc import Iterator
from pathlib import Path

from models import cnn
from models.augmentation import Affine
from models.images import Images, ImageSize
from models.objectives import Classification
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import Given

SETTING = "FASHION_MNIST"
PACKAGED = "/usr/share/datasets/fashion-mnist"
PARTS = ("train", "t10k")
LABELS = {part: f"{part}-labels-idx1-ubyte.gz" for part in PARTS}
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """The images of a part, and the labels of both; raises LookupError where they are not."""
    folder = Path(os.environ.get(SETTING, PACKAGED))
    for name in (f"{part}-images-idx3-ubyte.gz", *LABELS.values()):
        path = folder / name
        if not path.is_file():
            raise LookupError(
                f"{path} is not there: install the Debian package dataset-fashion-mnist, or set"
                f" {SETTING} to a folder with Fashion-MNIST's four idx files"
            )
        yield name, path.read_bytes()


line = Line(
    name="fashion",
    title="Articles of clothing",
    objective=Classification(target="label", labels=CLASSES),
    data=Images(
        raw="fashion/",
        size=ImageSize(),
        references=LABELS,
        classes=CLASSES,
        # The published test set is the test, so that figures compare with others'.
        split=Given(column="part", test="t10k"),
    ),
    model=cnn.Spec(size="vgg"),
    training=Training(
        epochs=5,
        batch_size=128,
        optimizer=Optimizer(lr=3e-3),
        augmentation=Affine(degrees=5, scale=0.05, shift=1.5, flip=True),
    ),
    # The difference of two seeds has a standard error of 0.24%: proof within 0.5% would hold back
    # every third equal challenger.
    gate=Gate(
        floors={"accuracy": 0.9, "calibration_error": 0.05},
        margin=0.01,
        noninferior=True,
        slices={"label": 0.05},
    ),
    budget=Budget(quality_loss=0.005, size_mb=3.0),
    example=Example(
        slices=PARTS,
        default=PARTS,
        load=load,
        source="Fashion-MNIST (Zalando Research, 2017), MIT",
    ),
)
