"""Random changes of training images."""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from models.spec import Augmentation

if TYPE_CHECKING:
    import torch


class Affine(Augmentation):
    """Every image is turned, scaled, shifted and maybe flipped by its own random amounts.

    A shift is a random crop of the image padded by its darkest value (He et al. 2016).
    """

    degrees: float = Field(10.0, ge=0, le=180)
    """Largest rotation in either direction."""
    scale: float = Field(0.1, ge=0, lt=1)
    """Largest relative change of size."""
    shift: float = Field(2.0, ge=0)
    """Largest shift in either direction, in pixels."""
    flip: bool = False
    """Whether left and right change places in half of the images."""

    def apply(
        self, tensors: dict[str, "torch.Tensor"], generator: "torch.Generator"
    ) -> dict[str, "torch.Tensor"]:
        """`image` uint8 [n, C, H, W] -> float32 of the same shape, 0 to 255; the rest as it is."""
        import torch
        from torch.nn import functional

        image = tensors["image"].to(torch.float32)
        count, _, height, width = image.shape
        random = (torch.rand(4, count, generator=generator) * 2 - 1).to(image.device)
        angle = random[0] * math.radians(self.degrees)
        size = 1 + random[1] * self.scale
        cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
        # Both axes of the grid go from -1 to 1, however long they are.
        wide, high = sine * (height / width), sine * (width / height)
        across, down = random[2] * (2 * self.shift / width), random[3] * (2 * self.shift / height)
        matrix = torch.stack(
            [torch.stack([cosine, -wide, across], 1), torch.stack([high, cosine, down], 1)], 1
        )
        if self.flip:
            mirrored = torch.rand(count, generator=generator).to(image.device) < 0.5
            matrix[mirrored, :, 0] *= -1
        grid = functional.affine_grid(matrix, list(image.shape), align_corners=False)
        low = image.amin(dim=(2, 3), keepdim=True)
        moved = functional.grid_sample(image - low, grid, align_corners=False) + low
        return {**tensors, "image": moved}
