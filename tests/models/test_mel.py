import numpy as np
import pytest

from models.mel import QUIETEST, LogMel
from tests.models.clips import RATE, tone

MEL = LogMel()


def test_the_loudest_band_follows_the_tone() -> None:
    bands = [
        int(MEL.spectrogram(tone(f, 0.5), RATE).mean(0).argmax()) for f in range(200, 3900, 300)
    ]
    assert bands == sorted(set(bands))
    assert bands[-1] > 30


def test_twice_as_loud_is_four_times_the_energy() -> None:
    quiet, loud = (MEL.spectrogram(tone(1000, 0.3, a), RATE).max(1) for a in (0.2, 0.4))
    np.testing.assert_allclose(loud - quiet, np.log(4), atol=1e-3)


def test_a_frame_is_what_the_definition_says() -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 200).astype(np.int16)
    n = np.arange(200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 200)
    bins = np.arange(129)
    spectrum = np.exp(-2j * np.pi * np.outer(bins, n) / 256) @ (samples / 32768 * window)
    energy = np.abs(spectrum) ** 2 / np.sum(window**2)
    mel = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 4000 / 700), 42)
    edges = 700 * (10 ** (mel / 2595) - 1)
    found = MEL.spectrogram(samples, RATE)
    assert found.shape == (1, 40)
    for band in range(5, 40):
        weights = np.interp(bins * RATE / 256, edges[band : band + 3], [0.0, 1.0, 0.0])
        if weights.any():
            assert found[0, band] == pytest.approx(np.log(weights @ energy), abs=1e-4)


def test_silence_has_a_value_and_every_band_a_bin() -> None:
    silence = MEL.spectrogram(np.zeros(800, np.int16), RATE)
    np.testing.assert_allclose(silence, np.log(QUIETEST), rtol=1e-6)
    noise = np.random.default_rng(0).integers(-9000, 9000, 8000).astype(np.int16)
    narrow = LogMel(bands=128, low=20).spectrogram(noise, RATE)
    assert (narrow > np.log(QUIETEST)).all()


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (199, 0), (200, 1), (279, 1), (280, 2)])
def test_only_whole_frames_count(samples: int, frames: int) -> None:
    found = MEL.spectrogram(np.ones(samples, np.int16), RATE)
    assert found.shape == (frames, 40)
    assert found.dtype == np.float32
    assert MEL.frames(samples, RATE) == frames


def test_a_clip_has_the_same_frames_alone_and_as_the_start_of_a_longer_one() -> None:
    samples = tone(700, 1.0)
    np.testing.assert_array_equal(
        MEL.spectrogram(samples[:4000], RATE), MEL.spectrogram(samples, RATE)[:48]
    )
