"""Speech: WAV clips beside a list of their transcripts, as rows of sound and text."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.archives import members
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
from models.mel import LogMel
from models.open import Frozen
from models.padding import LENGTH, joined
from models.pieces import tar_pieces, whole
from models.statistics import Moments, fold
from models.tensors import TensorSpec
from models.transcripts import read_transcripts, spoken
from models.waves import read_wave, write_wave

TRANSCRIPTS = "transcripts"
DURATIONS = ((0.0, 2.0), (2.0, 5.0), (5.0, float("inf")))


class Clip(Frozen):
    """The form every clip must have; none is converted."""

    rate: int = Field(8000, ge=4000, le=96_000)
    """Samples a second."""
    shortest: float = Field(0.1, ge=0.05)
    """In seconds; a shorter clip is refused."""
    longest: float = Field(20.0, gt=0, le=60)
    """In seconds; a longer clip is refused: it costs time and memory by the square."""

    def decode(self, payload: bytes) -> NDArray[np.int16]:
        """Samples int16 [n] of a WAV file; raises ValueError."""
        samples = read_wave(payload, self.rate)
        seconds = len(samples) / self.rate
        if not len(samples):
            raise ValueError("the clip is empty")
        if seconds < self.shortest:
            raise ValueError(f"it lasts {seconds:.3f} s, less than {self.shortest:g} s")
        if seconds > self.longest:
            raise ValueError(f"it lasts {seconds:.1f} s, over {self.longest:g} s: cut it up")
        return samples


class AudioFeatures(Features):
    """Two tensors: `spectrogram` FP32 [n, T, bands], and `frames` INT64 [n], how many of T count.

    Log-mel energies; behind a clip's last frame are zeros. The network scales them.
    """

    clip: Clip
    mel: LogMel
    mean: tuple[float, ...]
    """Of every band, over all frames of the training rows."""
    deviation: tuple[float, ...]
    """Standard deviation of every band over the same frames."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name="spectrogram", datatype="FP32", shape=(-1, -1, self.mel.bands)),
            TensorSpec(name=LENGTH, datatype="INT64", shape=(-1,)),
        )

    @property
    def most_frames(self) -> int:
        """Frames of the longest clip that is taken."""
        return self.mel.frames(round(self.clip.longest * self.clip.rate), self.clip.rate)

    def encode(self, rows: pl.DataFrame) -> Tensors:
        found = _spectrograms(rows, self.mel, self.clip.rate)
        none = np.zeros((0, 0, self.mel.bands), np.float32)
        return {
            "spectrogram": joined([none, *(one[None] for one in found)]),
            LENGTH: np.array([len(one) for one in found], np.int64),
        }

    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        """One WAV file."""
        del media_type
        try:
            samples = self.clip.decode(payload)
        except ValueError as error:
            raise RefusedRequest(str(error)) from None
        return pl.DataFrame({"audio": [samples.astype("<i2").tobytes()]})

    def write(self, row: pl.DataFrame) -> tuple[bytes, str]:
        """A WAV file."""
        return write_wave(_samples(row.item(0, "audio")), self.clip.rate), "audio/wav"

    def describe(self, tensors: Tensors) -> pl.DataFrame:
        """How long and how loud each clip is, how much that varies, and how bright it sounds."""
        energy, frames = tensors["spectrogram"].astype(np.float64), tensors[LENGTH]
        inside = np.arange(energy.shape[1]) < frames[:, None]
        count = np.maximum(frames, 1)

        def mean(levels: NDArray[np.float64]) -> NDArray[np.float64]:
            found: NDArray[np.float64] = np.sum(levels * inside, axis=1) / count
            return found

        level = energy.mean(axis=2)
        low, _, high = (third.mean(axis=2) for third in np.array_split(energy, 3, axis=2))
        loudness = mean(level)
        return pl.DataFrame(
            {
                "seconds": frames * self.mel.hop,
                "loudness": loudness,
                "loudness deviation": np.sqrt(mean((level - loudness[:, None]) ** 2)),
                "brightness": mean(high - low),
            }
        )

    def slices(self, rows: pl.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """By how long the clips last."""
        seconds = rows.get_column("seconds").to_numpy()
        for low, high in DURATIONS:
            yield f"seconds={low:g} to {high:g}", (seconds >= low) & (seconds < high)


class Audio(Data):
    """Objects `<name>.wav`, or tar shards whose members are; the reference `transcripts` has texts.

    A clip and its transcript share a name, which has no ending in the list of transcripts. Rows
    have the columns `audio` (samples, int16 little-endian) and `seconds`.
    """

    clip: Clip = Clip()
    mel: LogMel = LogMel()
    identity: tuple[str, ...] = ("sound",)
    suffixes: tuple[str, ...] = (".tar", ".wav")
    text: str = "transcript"
    """Name of the column that holds what is said."""
    fastest: float = Field(20.0, gt=0, le=100)
    """Most characters a second; a transcript with more is of another clip."""

    @model_validator(mode="after")
    def _has_transcripts(self) -> "Audio":
        if TRANSCRIPTS not in self.references:
            raise ValueError(f"references: name the list of transcripts {TRANSCRIPTS!r}")
        return self

    @property
    def kept(self) -> tuple[str, ...]:
        return ("audio", "seconds")

    def reference(self, name: str, payload: bytes) -> pl.DataFrame:
        """The list of transcripts: columns name and text."""
        return read_transcripts(name, payload)

    def parse(self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame]) -> Parsed:
        return self._parsed(name, payload, dict(references[TRANSCRIPTS].iter_rows()))

    def parse_unlabelled(
        self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame], target: str
    ) -> Parsed:
        """As `parse`; no transcript is looked for."""
        del references, target
        return self._parsed(name, payload, None)

    def pieces(self, name: str, path: Path, size: int) -> Iterator[Piece]:
        """Members of a tar archive; every other object is one piece."""
        return tar_pieces(path, size) if name.endswith(".tar") else whole(path)

    @property
    def joined(self) -> Mapping[str, str]:
        """None: the reference holds the transcripts."""
        return {}

    def _parsed(self, name: str, payload: bytes, texts: Mapping[str, str] | None) -> Parsed:
        """Every clip of an object, with its transcript unless there are none to look in."""
        if not payload:
            raise RefusedObject("the object is empty")
        kept, refused = [], []
        row = -1
        for row, (path, content) in enumerate(members(name, payload)):
            try:
                samples = self.clip.decode(content)
                kept.append((row, samples, None if texts is None else _said(path, texts)))
            except ValueError as error:
                refused.append({"row": row, "field": path, "reason": str(error)})
        if row < 0:
            raise RefusedObject("the archive holds no file")
        return Parsed(self._rows(kept), pl.DataFrame(refused, schema=REFUSED))

    def _rows(self, kept: Sequence[tuple[int, NDArray[np.int16], str | None]]) -> pl.DataFrame:
        sounds = [samples.astype("<i2").tobytes() for _, samples, _ in kept]
        return pl.DataFrame(
            {
                "row": pl.Series([row for row, _, _ in kept], dtype=pl.UInt32),
                "sound": pl.Series([bytes_digest(sound) for sound in sounds], dtype=pl.String),
                "audio": pl.Series(sounds, dtype=pl.Binary),
                "seconds": pl.Series(
                    [len(samples) / self.clip.rate for _, samples, _ in kept], dtype=pl.Float64
                ),
                self.text: pl.Series([said for _, _, said in kept], dtype=pl.String),
            }
        )

    def checks(self) -> Sequence[Check]:
        speed = pl.col(self.text).str.len_chars() / pl.col("seconds")
        return [
            Check(
                self.text,
                f"over {self.fastest:g} characters a second: of another clip?",
                # A clip that is only to be heard has no transcript.
                pl.col(self.text).is_null() | (speed <= self.fastest),
            )
        ]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        found = np.concatenate(_spectrograms(rows, self.mel, self.clip.rate))
        return {"bands": [Moments.of(band).model_dump() for band in found.T]}

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> AudioFeatures:
        bands = [
            fold([Moments.model_validate(s["bands"][band]) for s in summaries], Moments.merge)
            for band in range(self.mel.bands)
        ]
        # Four digits: what processors make of a logarithm's last bits is not worth another model.
        return AudioFeatures(
            clip=self.clip,
            mel=self.mel,
            mean=tuple(round(band.mean, 4) for band in bands),
            deviation=tuple(round(band.deviation, 4) or 1.0 for band in bands),
        )


def _said(path: str, texts: Mapping[str, str]) -> str:
    """What is said in a clip; raises ValueError."""
    text = texts.get(str(PurePosixPath(path).with_suffix("")))
    if text is None:
        raise ValueError("no transcript has its name")
    return spoken(text)


def _samples(sound: bytes) -> NDArray[np.int16]:
    return np.frombuffer(sound, "<i2").astype(np.int16)


def _spectrograms(rows: pl.DataFrame, mel: LogMel, rate: int) -> list[NDArray[np.float32]]:
    return [mel.spectrogram(_samples(sound), rate) for sound in rows.get_column("audio")]
