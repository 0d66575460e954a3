"""Versions that take texts and sound, whose answers are known by hand."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.audio import AudioFeatures, Clip
from models.mel import LogMel
from models.objectives import Classification
from models.padding import LENGTH
from models.texts import TextFeatures
from models.transcription import Transcription
from models.vocabulary import SPECIAL, Characters
from models.waves import write_wave
from tests.deployments.serving.versions import Version, assemble, network

RATE = 8000
TONES = {"a": 400.0, "b": 2400.0}


def opinion_version(known: str = "+-abc 好") -> Version:
    """For or against a text: every `+` in it counts for, every `-` against, nothing else does."""
    vocabulary = Characters(known=tuple(sorted(known)))
    features = TextFeatures(vocabulary=vocabulary, length=200)
    worth = np.zeros((vocabulary.size, 2), np.float32)
    worth[SPECIAL + vocabulary.known.index("+"), 1] = 1.0
    worth[SPECIAL + vocabulary.known.index("-"), 0] = 1.0
    nodes = [
        helper.make_node("Gather", ["worth", "tokens"], ["each"]),
        helper.make_node("ReduceSum", ["each", "along"], ["scores"], keepdims=0),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", 200])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])],
        worth=worth,
        along=np.array([1], np.int64),
    )
    tokens = vocabulary.rows(["a + b", "-"], 200, beginning=False)
    found = onnxruntime.InferenceSession(model).run(None, {"tokens": tokens})[0]
    objective = Classification(target="opinion", labels=("against", "for"))
    sample = {"tokens": tokens, "probabilities": found}
    return assemble("opinions", model, features, objective, sample)


def tones_version() -> Version:
    """What is said where a low tone is the letter `a` and a high one `b`."""
    mel = LogMel(bands=4)
    features = AudioFeatures(clip=Clip(rate=RATE), mel=mel, mean=(0.0,) * 4, deviation=(1.0,) * 4)
    weights = np.zeros((4, 3), np.float32)
    for letter, hertz in enumerate(TONES.values(), 1):
        heard = mel.spectrogram(tone(hertz, 0.1), RATE).mean(axis=0)
        weights[heard.argmax(), letter] = 1.0
    nodes = [
        helper.make_node("MatMul", ["spectrogram", "w"], ["level"]),
        helper.make_node("Add", ["level", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=2),
    ]
    model = network(
        nodes,
        [
            helper.make_tensor_value_info("spectrogram", TensorProto.FLOAT, ["n", "t", 4]),
            helper.make_tensor_value_info(LENGTH, TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", "t", 3])],
        w=weights,
        bias=np.array([0, 10, 10], np.float32),
    )
    heard = mel.spectrogram(spoken("ab"), RATE)[None]
    feeds = {"spectrogram": heard, LENGTH: np.array([heard.shape[1]])}
    found = onnxruntime.InferenceSession(model).run(None, feeds)[0]
    objective = Transcription(target="transcript", alphabet="ab", beam=2)
    sample = {**feeds, "probabilities": found}
    return assemble("tones", model, features, objective, sample)


def tone(hertz: float, seconds: float) -> NDArray[np.int16]:
    """Samples int16 of a sine."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (10_000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)


def spoken(letters: str) -> NDArray[np.int16]:
    """Samples of letters of 0.3 s each, with 0.3 s of silence before, between and behind them."""
    silence = np.zeros(round(0.3 * RATE), np.int16)
    parts = [silence]
    for letter in letters:
        parts += [tone(TONES[letter], 0.3), silence]
    return np.concatenate(parts)


def clip(letters: str) -> bytes:
    """A WAV file of them."""
    return write_wave(spoken(letters), RATE)
