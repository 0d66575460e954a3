"""Images: PNG and JPEG in folders named by class or in tar shards; idx; CIFAR-10 batches."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from models.archives import members
from models.cifar import BATCHES, read_batch
from models.data import (
    REFUSED,
    Check,
    Data,
    Features,
    Parsed,
    Piece,
    RefusedObject,
    RefusedRequest,
    Tensors,
)
from models.digests import bytes_digest
from models.idx import read_idx
from models.open import Frozen
from models.pieces import tar_pieces, whole
from models.tensors import TensorSpec

LARGEST = 16_000_000
FORMATS = ("PNG", "JPEG")
IDX_IMAGES = ("-images-idx3-ubyte", "-images-idx3-ubyte.gz")
MODES = {1: "L", 3: "RGB"}


class ImageSize(Frozen):
    """The form every image is brought to."""

    channels: Literal[1, 3] = 1
    height: int = Field(28, ge=4, le=1024)
    width: int = Field(28, ge=4, le=1024)

    def decode(self, payload: bytes) -> NDArray[np.uint8]:
        """Pixels uint8 [channels, height, width] of a PNG or JPEG; raises ValueError.

        An image of another size is scaled (bilinear). One under half the size in either direction
        or over 16 million pixels is refused before a pixel is decoded.
        """
        try:
            image: Image.Image = Image.open(io.BytesIO(payload), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError(f"it is over {LARGEST:,} pixels") from None
        except (UnidentifiedImageError, OSError):
            raise ValueError("not a PNG or JPEG image") from None
        width, height = image.size
        if width * height > LARGEST:
            raise ValueError(f"{width} x {height} is over {LARGEST:,} pixels")
        if width * 2 < self.width or height * 2 < self.height:
            raise ValueError(f"{width} x {height} is under half of {self.width} x {self.height}")
        if image.mode.startswith("I"):
            # Pillow would cut every value off at 255.
            raise ValueError("it has 16 bits a channel: save it with 8")
        try:
            image = image.convert(MODES[self.channels])
        except (OSError, SyntaxError) as error:
            raise ValueError(f"the image is damaged: {error}") from None
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.uint8).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    @property
    def dtype(self) -> pl.Array:
        """The type of a column of such images."""
        return pl.Array(pl.UInt8, int(np.prod(self.shape)))


class ImageFeatures(Features):
    """One tensor: `image` UINT8 [n, channels, height, width], scaled inside the network."""

    size: ImageSize
    mean: float
    """Mean of all training pixels, 0 to 255."""
    deviation: float = Field(gt=0)
    """Standard deviation of all training pixels."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="image", datatype="UINT8", shape=(-1, *self.size.shape)),)

    def encode(self, rows: pl.DataFrame) -> Tensors:
        pixels = rows.get_column("image").to_numpy().reshape(-1, *self.size.shape)
        return {"image": np.ascontiguousarray(pixels)}

    def describe(self, tensors: Tensors) -> pl.DataFrame:
        """Brightness, contrast and sharpness of each image, and the brightness of nine regions."""
        pixels = tensors["image"].astype(np.float64)
        gray = pixels.mean(axis=1)
        steps = (np.abs(np.diff(gray, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
        columns = {
            "brightness": gray.mean(axis=(1, 2)),
            "contrast": gray.std(axis=(1, 2)),
            "sharpness": sum(steps),
        }
        if self.size.channels > 1:
            columns |= {n: pixels[:, i].mean(axis=(1, 2)) for i, n in enumerate(("red", "green"))}
        for y, band in enumerate(np.array_split(gray, 3, axis=1), 1):
            for x, region in enumerate(np.array_split(band, 3, axis=2), 1):
                columns[f"brightness of region {y}, {x}"] = region.mean(axis=(1, 2))
        return pl.DataFrame(columns)

    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        """One PNG or JPEG image."""
        del media_type
        try:
            pixels = self.size.decode(payload)
        except ValueError as error:
            raise RefusedRequest(str(error)) from None
        return pl.DataFrame({"image": pixels.reshape(1, -1)}, schema={"image": self.size.dtype})

    def write(self, row: pl.DataFrame) -> tuple[bytes, str]:
        """A PNG image."""
        pixels = self.encode(row.head(1))["image"][0].transpose(1, 2, 0)
        packed = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if self.size.channels == 1 else pixels).save(
            packed, "PNG"
        )
        return packed.getvalue(), "image/png"


class Images(Data):
    """Objects `<class>/<name>.png` (or .jpg), or tar shards whose members are named like that.

    Also idx, objects `<part>-images-idx3-ubyte.gz` whose labels are the reference `<part>`, and
    CIFAR-10's `data_batch_1` to `test_batch`, parts `data` and `test`. Such rows have the column
    `part`, by which `splits.Given` can split.
    """

    size: ImageSize = ImageSize()
    identity: tuple[str, ...] = ("pixels",)
    suffixes: tuple[str, ...] = (".tar", ".png", ".jpg", ".jpeg", *IDX_IMAGES, *BATCHES)
    label: str = "label"
    """Name of the column that holds the class."""
    classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, … of idx and CIFAR-10; without one a class is its number."""

    @property
    def kept(self) -> tuple[str, ...]:
        return ("image",)

    def parse(self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame]) -> Parsed:
        if not payload:
            raise RefusedObject("the object is empty")
        if name.endswith(IDX_IMAGES):
            return self._idx(name, payload, references)
        if name.endswith(BATCHES):
            return self._batch(name, payload)
        pixels, labels, kept, refused = [], [], [], []
        row = -1
        for row, (path, content) in enumerate(members(name, payload)):
            try:
                pixels.append(self.size.decode(content).reshape(-1))
            except ValueError as error:
                refused.append({"row": row, "field": path, "reason": str(error)})
                continue
            labels.append(PurePosixPath(path).parent.name)
            kept.append(row)
        if row < 0:
            raise RefusedObject("the archive holds no file")
        stacked = np.stack(pixels) if pixels else np.zeros((0, self.size.dtype.size), np.uint8)
        return Parsed(self._rows(kept, stacked, labels), pl.DataFrame(refused, schema=REFUSED))

    def parse_unlabelled(
        self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame], target: str
    ) -> Parsed:
        """As `parse`; the labels of an idx file are not looked for."""
        if not name.endswith(IDX_IMAGES):
            return super().parse_unlabelled(name, payload, references, target)
        images = self._idx_images(payload)
        rows = self._rows(range(len(images)), images.reshape(len(images), -1), [""] * len(images))
        return Parsed(rows.with_columns(part=pl.lit(_part(name))), pl.DataFrame(schema=REFUSED))

    def pieces(self, name: str, path: Path, size: int) -> Iterator[Piece]:
        """Members of a tar archive; every other object is one piece."""
        return tar_pieces(path, size) if name.endswith(".tar") else whole(path)

    @property
    def joined(self) -> Mapping[str, str]:
        """None: references hold the labels of idx files."""
        return {}

    def reference(self, name: str, payload: bytes) -> pl.DataFrame:
        """The labels of an idx file as text, in its order."""
        try:
            numbers = read_idx(payload, dimensions=1)
        except ValueError as error:
            raise RefusedObject(f"reference {name}: {error}") from None
        return pl.DataFrame({"label": [self._named(int(number)) for number in numbers]})

    def _named(self, number: int) -> str:
        return self.classes[number] if 0 <= number < len(self.classes) else str(number)

    def _idx(self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame]) -> Parsed:
        """Every image of an idx file; the object as a whole is refused where it does not fit."""
        part = _part(name)
        if part not in references:
            raise RefusedObject(f"the line names no labels for {part!r}: add them to references")
        images = self._idx_images(payload)
        labels = references[part].get_column("label").to_list()
        if len(labels) != len(images):
            raise RefusedObject(f"it holds {len(images):,} images, {part} {len(labels):,} labels")
        rows = self._rows(range(len(images)), images.reshape(len(images), -1), labels)
        return Parsed(rows.with_columns(part=pl.lit(part)), pl.DataFrame(schema=REFUSED))

    def _idx_images(self, payload: bytes) -> NDArray[np.uint8]:
        try:
            images = read_idx(payload, dimensions=3)
        except ValueError as error:
            raise RefusedObject(str(error)) from None
        self._fits(1, *images.shape[1:])
        return images

    def _batch(self, name: str, payload: bytes) -> Parsed:
        """Every image of a CIFAR-10 batch."""
        try:
            images, numbers = read_batch(payload)
        except ValueError as error:
            raise RefusedObject(str(error)) from None
        self._fits(*images.shape[1:])
        labels = [self._named(number) for number in numbers]
        rows = self._rows(range(len(images)), images.reshape(len(images), -1), labels)
        part = PurePosixPath(name).name.partition("_")[0]
        return Parsed(rows.with_columns(part=pl.lit(part)), pl.DataFrame(schema=REFUSED))

    def _fits(self, channels: int, height: int, width: int) -> None:
        if (channels, height, width) != self.size.shape:
            wanted = f"{self.size.width} x {self.size.height} x {self.size.channels}"
            raise RefusedObject(
                f"its images are {width} x {height} x {channels}, the line's are {wanted}"
            )

    def _rows(
        self, numbers: Sequence[int], pixels: NDArray[np.uint8], labels: Sequence[str]
    ) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "row": pl.Series(numbers, dtype=pl.UInt32),
                "pixels": pl.Series([bytes_digest(p.tobytes()) for p in pixels], dtype=pl.String),
                "image": pl.Series(pixels, dtype=self.size.dtype),
                self.label: pl.Series(labels, dtype=pl.String),
            }
        )

    def checks(self) -> Sequence[Check]:
        return []

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        pixels = rows.get_column("image").to_numpy().reshape(-1)
        counts = np.bincount(pixels, minlength=256)
        return {"histogram": [int(count) for count in counts]}

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> ImageFeatures:
        counts = np.sum([s["histogram"] for s in summaries], axis=0, dtype=np.float64)
        values = np.arange(256.0)
        mean = float(np.sum(counts * values) / np.sum(counts))
        deviation = float(np.sqrt(np.sum(counts * (values - mean) ** 2) / np.sum(counts)))
        return ImageFeatures(size=self.size, mean=mean, deviation=deviation or 1.0)


def _part(name: str) -> str:
    """What comes before `-images-idx3`."""
    return PurePosixPath(name).name.partition("-images-idx3")[0]
