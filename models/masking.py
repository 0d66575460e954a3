"""Random changes of training spectrograms: other tempo, masked times and bands."""

from typing import TYPE_CHECKING

from pydantic import Field

from models.padding import LENGTH
from models.spec import Augmentation

if TYPE_CHECKING:
    import torch


class SpecAugment(Augmentation):
    """SpecAugment (Park et al. 2019): stretches of time and of bands are hidden in every row.

    Hidden is what the row's own mean is put in place of. Before that each row is said faster or
    slower by its own amount, by drawing its frames anew (linear).
    """

    times: int = Field(2, ge=0, le=20)
    """Stretches of time that are hidden."""
    time: float = Field(0.1, ge=0, le=0.5)
    """Longest stretch, as a share of the row."""
    bands: int = Field(2, ge=0, le=20)
    """Stretches of neighbouring bands that are hidden."""
    band: float = Field(0.2, ge=0, le=0.5)
    """Widest stretch, as a share of all bands."""
    tempo: float = Field(0.1, ge=0, le=0.3)
    """Largest relative change of a row's length."""

    def apply(
        self, tensors: dict[str, "torch.Tensor"], generator: "torch.Generator"
    ) -> dict[str, "torch.Tensor"]:
        """`spectrogram` float32 [n, T, bands] and `frames` int64 [n], with another T."""
        import torch

        x, frames = tensors["spectrogram"], tensors[LENGTH]
        count, _, width = x.shape

        def random(*shape: int) -> "torch.Tensor":
            return torch.rand(count, *shape, generator=generator).to(x.device)

        stretch = 1 + (2 * random() - 1) * self.tempo
        changed = (frames * stretch).round().long().clamp(min=1)
        place = torch.arange(int(changed.max()), device=x.device)[None, :]
        x = _drawn(x, place * ((frames - 1) / (changed - 1).clamp(min=1))[:, None])
        inside = place < changed[:, None]
        mean = (x * inside[:, :, None]).sum(1, keepdim=True) / changed[:, None, None]
        hidden = _stretches(place, changed, self.time, random(self.times), random(self.times))
        x = torch.where(hidden[:, :, None], mean, x)
        across = torch.arange(width, device=x.device)[None, :]
        whole = torch.full_like(changed, width)
        hidden = _stretches(across, whole, self.band, random(self.bands), random(self.bands))
        x = torch.where(hidden[:, None, :], mean, x) * inside[:, :, None]
        return {**tensors, "spectrogram": x, LENGTH: changed}


def _drawn(x: "torch.Tensor", place: "torch.Tensor") -> "torch.Tensor":
    """The rows [n, T, bands] at fractional places [n, S], between two frames by their distance."""
    last = x.shape[1] - 1
    left = place.floor().long().clamp(max=last)
    right = (left + 1).clamp(max=last)
    share = (place - left)[:, :, None]

    def at(index: "torch.Tensor") -> "torch.Tensor":
        return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))

    return at(left) * (1 - share) + at(right) * share


def _stretches(
    place: "torch.Tensor", length: "torch.Tensor", share: float, start: "torch.Tensor",
    size: "torch.Tensor",
) -> "torch.Tensor":  # fmt: skip
    """Bool [n, places]: whether a place lies in one of the stretches; random numbers [n, k]."""
    reach = (size * share * length[:, None]).round()
    first = (start * (length[:, None] - reach)).floor()
    place = place[:, :, None]
    inside = (place >= first[:, None, :]) & (place < (first + reach)[:, None, :])
    return inside.any(2)
