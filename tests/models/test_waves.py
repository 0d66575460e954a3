import io
import struct
import wave

import numpy as np
import pytest

from models.waves import MOST_CHUNKS, read_wave, write_wave

SAMPLES = np.random.default_rng(0).integers(-32768, 32768, 500).astype(np.int16)
CLIP = write_wave(SAMPLES, 8000)


def written(channels: int = 1, width: int = 2, rate: int = 8000) -> bytes:
    packed = io.BytesIO()
    with wave.open(packed, "wb") as clip:
        clip.setnchannels(channels)
        clip.setsampwidth(width)
        clip.setframerate(rate)
        clip.writeframes(bytes(channels * width * 100))
    return packed.getvalue()


def test_samples_come_back_as_they_were_written() -> None:
    np.testing.assert_array_equal(read_wave(CLIP, 8000), SAMPLES)
    assert read_wave(write_wave(SAMPLES[:0], 8000), 8000).shape == (0,)


def test_other_chunks_are_passed_over() -> None:
    remark = b"LIST" + struct.pack("<I", 6) + b"INFOab"
    longer = CLIP[:12] + remark + CLIP[12:]
    whole = longer[:4] + struct.pack("<I", len(longer) - 8) + longer[8:]
    np.testing.assert_array_equal(read_wave(whole, 8000), SAMPLES)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (written(channels=2), "it has 2 channels, one is taken: mix them down"),
        (written(width=1), "its samples have 8 bits, 16 are taken"),
        (written(width=3), "its samples have 24 bits, 16 are taken"),
        (written(rate=44_100), "it has 44,100 samples a second, 8,000 are taken: resample it"),
        (CLIP[:-7], "it is cut short: 496 of 500 samples"),
        (CLIP[:44], "it is cut short: 0 of 500 samples"),
        (CLIP[:40], "not a WAV file of PCM samples"),
        (CLIP[:9], "not a WAV file of PCM samples"),
        (b"", "not a WAV file of PCM samples: it ends too early"),
        (b"RIFF\xff\xff\xff\xffWAVEdata\xff\xff\xff\xff", "not a WAV file of PCM samples"),
        (b"OggS" + bytes(60), "not a WAV file of PCM samples"),
        (CLIP[:20] + struct.pack("<H", 7) + CLIP[22:], "not a WAV file of PCM samples"),
    ],
)
def test_what_is_no_such_clip_is_refused_with_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_wave(payload, 8000)


def test_a_flood_of_chunks_is_not_walked_through() -> None:
    remark = b"LIST" + struct.pack("<I", 1) + b"a\0"
    for count in (MOST_CHUNKS - 2, MOST_CHUNKS):
        content = CLIP[8:12] + remark * count + CLIP[12:]
        whole = b"RIFF" + struct.pack("<I", len(content)) + content
        if count < MOST_CHUNKS:
            np.testing.assert_array_equal(read_wave(whole, 8000), SAMPLES)
        else:
            with pytest.raises(ValueError, match="over 1,000 chunks before them"):
                read_wave(whole, 8000)


def test_a_header_that_promises_gigabytes_costs_none() -> None:
    promised = CLIP[:40] + struct.pack("<I", 0xFFFFFFF0) + CLIP[44:]
    with pytest.raises(ValueError, match="cut short: 500 of 2,147,483,640 samples"):
        read_wave(promised, 8000)


def test_any_bytes_are_a_clip_or_refused() -> None:
    whole = write_wave(SAMPLES[:18], 8000)
    random, refused = np.random.default_rng(1), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(0, len(damaged))] = int(random.integers(0, 256))
        try:
            assert len(read_wave(bytes(damaged), 8000)) <= 80
        except ValueError:
            refused += 1
    assert 0 < refused < 300
