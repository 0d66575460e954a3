"""WAV files: 16-bit PCM samples of one channel, read strictly and written."""

import io
import wave

import numpy as np
from numpy.typing import NDArray

MOST_CHUNKS = 1000
"""Before the samples; a file of nothing but headers would be walked through for seconds."""


def read_wave(payload: bytes, rate: int) -> NDArray[np.int16]:
    """Samples int16 [n] of a WAV file at `rate` samples a second; raises ValueError.

    Nothing is converted: another rate, a second channel or other samples are refused, and so is a
    file that holds less than its header says.
    """
    _bound_chunks(payload)
    try:
        with wave.open(io.BytesIO(payload)) as clip:
            channels, width, found = clip.getnchannels(), clip.getsampwidth(), clip.getframerate()
            announced = clip.getnframes()
            if channels != 1:
                raise ValueError(f"it has {channels} channels, one is taken: mix them down")
            if width != 2:
                raise ValueError(f"its samples have {8 * width} bits, 16 are taken: convert it")
            if found != rate:
                raise ValueError(
                    f"it has {found:,} samples a second, {rate:,} are taken: resample it"
                )
            # No more than is there is read, whatever the header announces.
            content = clip.readframes(min(announced, len(payload)))
    except (wave.Error, EOFError, RuntimeError) as error:
        raise ValueError(
            f"not a WAV file of PCM samples: {str(error) or 'it ends too early'}"
        ) from None
    if len(content) != 2 * announced:
        raise ValueError(f"it is cut short: {len(content) // 2:,} of {announced:,} samples")
    return np.frombuffer(content, "<i2").astype(np.int16)


def _bound_chunks(payload: bytes) -> None:
    at = 12  # behind RIFF, its size and WAVE
    for _ in range(MOST_CHUNKS):
        kind, size = payload[at : at + 4], payload[at + 4 : at + 8]
        if kind == b"data" or len(size) < 4:
            return
        length = int.from_bytes(size, "little")
        at += 8 + length + length % 2
    raise ValueError(f"not a WAV file of PCM samples: over {MOST_CHUNKS:,} chunks before them")


def write_wave(samples: NDArray[np.int16], rate: int) -> bytes:
    """A WAV file of those samples."""
    packed = io.BytesIO()
    with wave.open(packed, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(rate)
        clip.writeframes(samples.astype("<i2").tobytes())
    return packed.getvalue()
