import torch

from models.augmentation import Affine
from models.spec import Augmentation

PIXELS = torch.randint(0, 256, (6, 1, 12, 12), generator=torch.Generator().manual_seed(0))
IMAGES = {"image": PIXELS.to(torch.uint8), "other": torch.arange(6)}


def apply(augmentation: Augmentation, seed: int) -> dict[str, torch.Tensor]:
    return augmentation.apply(IMAGES, torch.Generator().manual_seed(seed))


def test_the_same_seed_gives_the_same_images_and_another_gives_others() -> None:
    first, again, other = (apply(Affine(), seed)["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_image_is_moved_by_its_own_amount() -> None:
    same = {"image": IMAGES["image"][:1].repeat(4, 1, 1, 1)}
    moved = Affine().apply(same, torch.Generator().manual_seed(1))["image"]
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 4


def test_nothing_to_move_changes_nothing() -> None:
    found = apply(Affine(degrees=0, scale=0, shift=0), 1)["image"]
    torch.testing.assert_close(found, IMAGES["image"].to(torch.float32), atol=1e-3, rtol=0)


def test_images_stay_images_and_the_rest_stays_as_it_is() -> None:
    found = apply(Affine(degrees=90, scale=0.5, shift=6), 3)
    assert found["image"].shape == IMAGES["image"].shape
    assert found["image"].dtype == torch.float32
    assert found["image"].min() >= -1e-3
    assert found["image"].max() <= 255 + 1e-3
    assert torch.equal(found["other"], IMAGES["other"])


def test_a_shift_moves_by_that_many_pixels_at_most() -> None:
    dot = torch.zeros(64, 1, 21, 21, dtype=torch.uint8)
    dot[:, :, 10, 10] = 255
    moved = Affine(degrees=0, scale=0, shift=3).apply(
        {"image": dot}, torch.Generator().manual_seed(0)
    )["image"]
    places = torch.nonzero(moved[:, 0] > 100)[:, 1:] - 10
    assert places.abs().max() == 3
    assert len(places.unique(dim=0)) > 10


def test_a_flip_mirrors_about_half_of_the_images_and_nothing_else() -> None:
    many = {"image": IMAGES["image"][:1].repeat(200, 1, 1, 1)}
    flip = Affine(degrees=0, scale=0, shift=0, flip=True)
    found = flip.apply(many, torch.Generator().manual_seed(0))["image"]
    plain = many["image"].to(torch.float32)
    mirrored = ((found - plain.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-2).sum().item()
    same = ((found - plain).abs().amax(dim=(1, 2, 3)) < 1e-2).sum().item()
    assert mirrored + same == 200
    assert 70 < mirrored < 130


def test_a_round_thing_stays_round_in_an_image_that_is_not_square() -> None:
    down, across = torch.meshgrid(torch.arange(32.0), torch.arange(96.0), indexing="ij")
    disc = ((down - 15.5) ** 2 + (across - 47.5) ** 2 < 100).to(torch.uint8) * 255
    images = {"image": disc.repeat(8, 1, 1, 1)}
    turned = Affine(degrees=60, scale=0, shift=0).apply(images, torch.Generator().manual_seed(1))
    for (image,) in turned["image"]:
        weight = image / image.sum()
        high, wide = (weight * (down - 15.5) ** 2).sum(), (weight * (across - 47.5) ** 2).sum()
        slanted = (weight * (down - 15.5) * (across - 47.5)).sum()
        assert 0.97 < high / wide < 1.03
        assert abs(slanted / wide) < 0.03
