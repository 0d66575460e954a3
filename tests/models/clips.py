"""Made-up speech: letters that are tones, in WAV files of the true format."""

import io
import tarfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.audio import TRANSCRIPTS, Audio, Clip
from models.mel import LogMel
from models.splits import ByGroup
from models.transcription import Transcription
from models.waves import write_wave

RATE = 8000
TONES = {"a": 400.0, "b": 1000.0, " ": 2400.0}
LETTER = 0.16
"""Seconds a letter lasts, a short pause behind it included."""

TALK = Audio(
    raw="talk/",
    references={TRANSCRIPTS: "texts.txt"},
    clip=Clip(rate=RATE, longest=3.0),
    mel=LogMel(bands=16),
    split=ByGroup(column="transcript", test=0.25, validation=0.2),
)
SAID = Transcription(target="transcript", alphabet=" ab", beam=2)


def tone(hertz: float, seconds: float, loud: float = 0.3) -> NDArray[np.int16]:
    """A sine of that frequency."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (loud * 32767 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)


def say(text: str, number: int = 0) -> NDArray[np.int16]:
    """The samples of a text; another number, another noise and loudness."""
    random = np.random.default_rng(number)
    pause = np.zeros(round(0.04 * RATE), np.int16)
    loud = 0.2 + 0.2 * random.random()
    parts = [part for c in text for part in (tone(TONES[c], LETTER - 0.04, loud), pause)]
    samples = np.concatenate([pause, *parts])
    return (samples + random.integers(-40, 41, len(samples))).astype(np.int16)


def text(number: int) -> str:
    """The text of a clip, the same for one number for ever; some are the same."""
    random = np.random.default_rng(number // 3 * 3 if number % 3 else number)
    letters = "".join(random.choice(["a", "b"], random.integers(2, 6)))
    return letters[:2] + " " + letters[2:] if len(letters) > 3 else letters


def shard(clips: Mapping[str, bytes]) -> bytes:
    """A tar of WAV files by name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in clips.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def talk(numbers: range) -> bytes:
    """A shard of the clips with those numbers."""
    return shard({f"{n}.wav": write_wave(say(text(n), n), RATE) for n in numbers})


def texts(numbers: range) -> bytes:
    """The list of their transcripts."""
    lines = [f"{number}: {text(number).capitalize()}." for number in numbers]
    return "\n".join(["; made up", "", *lines, ""]).encode()
