"""A small speech recogniser, as a user would add it: one file. Its letters are tones, made up.

MODELMINT_LINES=tests/lines modelmint run chimes
"""

import io
import tarfile
from collections.abc import Iterator

import numpy as np

from models import transformer
from models.audio import TRANSCRIPTS, Audio, Clip
from models.masking import SpecAugment
from models.mel import LogMel
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByGroup
from models.transcription import Transcription
from models.waves import write_wave

RATE = 8000
HERTZ = {"a": 400.0, "b": 1000.0, "c": 2400.0}
CLIPS = 120
PARTS = ("first", "second")


def text(number: int) -> str:
    """Three to five letters, the same for one number for ever."""
    random = np.random.default_rng(number)
    return "".join(random.choice(list(HERTZ), random.integers(3, 6)))


def clip(number: int) -> bytes:
    """A WAV file in which the text's letters sound, each for 0.08 s, over some noise."""
    time = np.arange(round(0.08 * RATE)) / RATE
    pause = np.zeros(round(0.02 * RATE))
    parts = [part for c in text(number) for part in (np.sin(2 * np.pi * HERTZ[c] * time), pause)]
    sound = np.concatenate([pause, *parts])
    noise = np.random.default_rng(number).integers(-40, 41, len(sound))
    return write_wave((8000 * sound + noise).astype(np.int16), RATE)


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """Half of the clips as a tar, and the transcripts of all."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(PARTS.index(part), CLIPS, len(PARTS)):
            content = clip(number)
            member = tarfile.TarInfo(f"{number}.wav")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    yield f"{part}.tar", packed.getvalue()
    yield "texts.txt", "".join(f"{n}: {text(n).capitalize()}.\n" for n in range(CLIPS)).encode()


line = Line(
    name="chimes",
    title="Letters that are tones",
    objective=Transcription(target="transcript", alphabet="abc", beam=2),
    data=Audio(
        raw="chimes/",
        references={TRANSCRIPTS: "texts.txt"},
        clip=Clip(rate=RATE, longest=2.0),
        mel=LogMel(bands=16),
        split=ByGroup(column="transcript", test=0.3, validation=0.15),
    ),
    model=transformer.Spec(size="tiny", reach=3),
    training=Training(
        epochs=2,
        batch_size=8,
        optimizer=Optimizer(lr=0.01),
        augmentation=SpecAugment(times=1, bands=1),
        clip=1.0,
    ),
    gate=Gate(floors={"cer": 0.95}, margin=0.1),
    budget=Budget(quality_loss=0.5, slowdown=100, candidates=("int8-dynamic",)),
    example=Example(slices=PARTS, default=PARTS, load=load, source="made by this file"),
)
