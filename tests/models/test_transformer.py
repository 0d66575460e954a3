import numpy as np
import pytest
import torch

from models import transformer
from models.audio import AudioFeatures, Clip
from models.images import ImageFeatures, ImageSize
from models.layers import Served, ctc
from models.mel import LogMel
from models.padding import LENGTH
from models.transcription import Transcription

SAID = Transcription(target="text", alphabet=" ab")
FEATURES = AudioFeatures(
    clip=Clip(longest=2.0), mel=LogMel(bands=12), mean=(-3.0,) * 12, deviation=(2.0,) * 12
)
FRAMES = torch.tensor([90, 41, 4, 1, 63])


def network(reach: int = 3) -> Served:
    torch.manual_seed(0)
    spec = transformer.Spec(size="tiny", reach=reach)
    return Served(spec.build(FEATURES, SAID.width), SAID).eval()


def rows(length: int = 90, behind: float = 0.0) -> torch.Tensor:
    """Spectrograms of `FRAMES`; something else lies behind their ends."""
    random = torch.Generator().manual_seed(0)
    found = torch.randn(5, length, 12, generator=random)
    found[torch.arange(length) >= FRAMES[:, None]] = behind
    return found


@pytest.mark.parametrize("reach", [0, 3])
@torch.inference_mode()
def test_padding_changes_no_answer(reach: int) -> None:
    served = network(reach)
    together = served(rows(), FRAMES)
    longer = torch.cat([rows(), torch.full((5, 37, 12), 9.0)], dim=1)
    torch.testing.assert_close(served(longer, FRAMES)[:, :23], together)
    torch.testing.assert_close(served(rows(behind=9.0), FRAMES), together)
    for row, count in enumerate(FRAMES.tolist()):
        alone = served(rows()[row : row + 1, :count], FRAMES[row : row + 1])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone)
        assert len(alone) == -(-count // 4)
        # What follows is surely blank.
        assert (together[row, len(alone) :, 0] == 1).all()


@torch.inference_mode()
def test_a_letter_depends_on_what_is_said_and_where() -> None:
    served = network()
    first, second = served(rows(), FRAMES), served(rows() * 0.5, FRAMES)
    assert not torch.allclose(first, second)
    same = torch.zeros(1, 90, 12)
    across = served(same, FRAMES[:1])[0, 5:-5]
    assert not torch.allclose(across[0], across[1], atol=1e-5), "positions have no say"


@torch.inference_mode()
def test_a_row_without_a_frame_has_an_answer_and_one_too_long_has_none() -> None:
    served = network()
    assert torch.isfinite(served(rows()[:1, :1], torch.tensor([0]))).all()
    with pytest.raises(RuntimeError):
        served(torch.zeros(1, 4 * FEATURES.most_frames, 12), torch.tensor([9]))


def test_padding_changes_no_loss() -> None:
    served = network()
    target = torch.tensor([[1, 2, 2, 3], [3, 3, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [1, 3, 0, 0]])
    with torch.no_grad():
        whole = ctc(served.network(rows(), FRAMES), target)
        alone = [
            ctc(served.network(rows()[i : i + 1, :n], FRAMES[i : i + 1]), target[i : i + 1])
            for i, n in enumerate(FRAMES.tolist())
        ]
    assert torch.isfinite(whole)
    assert float(whole) == pytest.approx(float(torch.stack(alone).mean()), rel=1e-5)


def test_two_equal_letters_cost_more_than_frames_can_tell() -> None:
    logits = torch.zeros(1, 2, SAID.width)
    logits.requires_grad_()
    loss = ctc(logits, torch.tensor([[1, 1]]))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    assert torch.isfinite(ctc(logits, torch.tensor([[1, 2]])))


@pytest.mark.parametrize("size", transformer.SIZES)
def test_every_size_gives_a_probability_for_every_symbol(size: str) -> None:
    spec = transformer.Spec.model_validate({"size": size})
    served = Served(spec.build(FEATURES, SAID.width), SAID).eval()
    with torch.inference_mode():
        found = served(rows(), FRAMES).numpy()
    assert found.shape == (5, 23, SAID.width)
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-5)


def test_the_family_takes_sound_only() -> None:
    images = ImageFeatures(size=ImageSize(), mean=0.0, deviation=1.0)
    with pytest.raises(TypeError, match="this family takes sound, the line has ImageFeatures"):
        transformer.Spec().build(images, 3)


def test_inputs_are_what_the_features_give() -> None:
    assert [spec.name for spec in FEATURES.inputs] == ["spectrogram", LENGTH]
