import torch

from models.masking import SpecAugment
from models.padding import LENGTH

FRAMES = torch.tensor([100, 60, 7, 1])
RAMP = torch.arange(100.0)[None, :, None].expand(4, -1, 10).clone()
RAMP[torch.arange(100) >= FRAMES[:, None]] = 0
ROWS = {"spectrogram": RAMP, LENGTH: FRAMES, "other": torch.arange(4)}
STILL = SpecAugment(times=0, bands=0, tempo=0)


def apply(augmentation: SpecAugment, seed: int = 1) -> dict[str, torch.Tensor]:
    return augmentation.apply(ROWS, torch.Generator().manual_seed(seed))


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    first, again, other = (apply(SpecAugment(), seed)["spectrogram"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_nothing_to_change_changes_nothing() -> None:
    found = apply(STILL)
    torch.testing.assert_close(found["spectrogram"], RAMP)
    assert torch.equal(found[LENGTH], FRAMES)
    assert torch.equal(found["other"], ROWS["other"])
    assert list(found) == list(ROWS)


def test_another_tempo_keeps_the_ends_and_is_within_its_bounds() -> None:
    lengths = set()
    for seed in range(20):
        found = apply(SpecAugment(times=0, bands=0, tempo=0.2), seed)
        x, frames = found["spectrogram"], found[LENGTH]
        assert ((frames >= 0.8 * FRAMES - 1) & (frames <= 1.2 * FRAMES + 1)).all()
        for row in range(3):
            last = int(frames[row]) - 1
            assert x[row, 0, 0] == 0
            torch.testing.assert_close(x[row, last, 0], RAMP[row, FRAMES[row] - 1, 0])
            assert (x[row, 1 : last + 1, 0] > x[row, :last, 0]).all()
            assert not x[row, last + 1 :].any()
        lengths.add(int(frames[0]))
    assert len(lengths) > 5


def test_hidden_stretches_have_the_mean_of_their_row_and_no_more_than_their_share() -> None:
    hide = SpecAugment(times=1, time=0.2, bands=0, tempo=0)
    shares = []
    for seed in range(50):
        x = apply(hide, seed)["spectrogram"]
        changed = (x != RAMP).all(2)[0]
        assert torch.equal(x[0][changed], torch.full_like(x[0][changed], float(RAMP[0].mean())))
        shares.append(changed.float().mean().item())
    assert 0.15 < max(shares) < 0.201
    assert min(shares) < 0.05


def test_hidden_bands_are_hidden_at_all_times_but_not_behind_the_end() -> None:
    found = apply(SpecAugment(times=0, bands=2, band=0.3, tempo=0), 4)["spectrogram"]
    hidden = (found[0] == RAMP[0].mean()).all(0)
    assert 0 < hidden.sum() <= 6
    assert not found[1, 60:].any()
