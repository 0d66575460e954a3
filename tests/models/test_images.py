import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.data import RefusedObject, RefusedRequest
from models.images import ImageFeatures, Images, ImageSize
from models.objectives import Classification
from models.splits import ByHash

SIZE = ImageSize(channels=1, height=8, width=8)
COLOUR = ImageSize(channels=3, height=8, width=8)
DATA = Images(raw="shapes/", size=SIZE, split=ByHash())
BLOCK = 512


def pixels(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 8), dtype=np.uint8)


def encoded(array: NDArray[np.generic], kind: str = "PNG") -> bytes:
    packed = io.BytesIO()
    Image.fromarray(array).save(packed, kind, quality=95)
    return packed.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to no data behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


SIX = {f"{'ab'[i % 2]}/{i}.png": encoded(pixels(i)) for i in range(6)}
with tarfile.open(fileobj=io.BytesIO(tar(SIX))) as whole:
    HEADERS = [member.offset for member in whole]


# ---- decode


def test_a_png_is_its_pixels() -> None:
    np.testing.assert_array_equal(SIZE.decode(encoded(pixels(1))), pixels(1)[None])
    found = COLOUR.decode(encoded(pixels(2, 8, 8, 3)))
    np.testing.assert_array_equal(found, pixels(2, 8, 8, 3).transpose(2, 0, 1))


def test_a_jpeg_is_close_to_its_pixels() -> None:
    smooth = np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8) * 10
    found = SIZE.decode(encoded(smooth, "JPEG")).astype(int)
    assert np.abs(found - smooth[None]).max() <= 4


def test_channels_are_brought_to_those_of_the_line() -> None:
    assert SIZE.decode(encoded(pixels(2, 8, 8, 3))).shape == (1, 8, 8)
    grey = COLOUR.decode(encoded(pixels(1)))
    np.testing.assert_array_equal(grey, np.repeat(pixels(1)[None], 3, axis=0))


@pytest.mark.parametrize("shape", [(16, 16), (4, 4), (9, 30)])
def test_another_size_is_scaled(shape: tuple[int, int]) -> None:
    found = SIZE.decode(encoded(np.full(shape, 77, np.uint8)))
    np.testing.assert_array_equal(found, np.full((1, 8, 8), 77))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a PNG or JPEG image"),
        (b"hello", "not a PNG or JPEG image"),
        (encoded(pixels(1), "GIF"), "not a PNG or JPEG image"),
        (encoded(pixels(1))[:60], "the image is damaged"),
        (encoded(pixels(1, 64, 64), "JPEG")[:900], "the image is damaged"),
        (encoded(pixels(1, 1, 1)), "1 x 1 is under half of 8 x 8"),
        (encoded(pixels(1, 8, 3)), "3 x 8 is under half of 8 x 8"),
        (encoded(pixels(1).astype(np.uint16) * 256), "16 bits a channel"),
    ],
    ids=["empty", "text", "gif", "cut-png", "cut-jpeg", "one-pixel", "narrow", "16-bit"],
)
def test_what_is_no_fitting_image_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SIZE.decode(payload)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(20_000, 1_000), (20_000, 5_000), (20_000, 20_000)])
def test_a_huge_image_is_refused_by_its_header(width: int, height: int) -> None:
    # The data behind the header is missing: decoding would complain of that.
    with pytest.raises(ValueError, match="over 16,000,000 pixels"):
        SIZE.decode(png_of_size(width, height))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damage_anywhere_is_a_refusal_and_nothing_else(kind: str) -> None:
    random = np.random.default_rng(0)
    good = encoded(pixels(3), kind)
    refused = 0
    for _ in range(800):
        damaged = bytearray(good[: random.integers(len(good) // 2, len(good) + 1)])
        for position in random.integers(0, len(damaged), 3):
            damaged[position] = random.integers(256)
        try:
            assert SIZE.decode(bytes(damaged)).shape == (1, 8, 8)
        except ValueError:
            refused += 1
    assert refused > 100


# ---- parse


def test_a_tar_holds_an_image_for_every_member() -> None:
    found = DATA.parse("shard.tar", tar(SIX), {})
    assert found.rows["row"].to_list() == list(range(6))
    assert found.rows["label"].to_list() == list("ababab")
    np.testing.assert_array_equal(
        found.rows["image"].to_numpy().reshape(-1, 8, 8), np.stack([pixels(i) for i in range(6)])
    )
    assert found.refused.height == 0


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg")])
def test_a_single_image_is_a_row_of_the_class_of_its_folder(kind: str, suffix: str) -> None:
    found = DATA.parse(f"2024/cat/7.{suffix}", encoded(pixels(7), kind), {})
    assert (found.rows.height, found.rows["label"].to_list()) == (1, ["cat"])


def test_the_same_pixels_are_the_same_record_however_packed() -> None:
    single = DATA.parse("a/0.png", encoded(pixels(0)), {}).rows
    packed = DATA.parse("shard.tar", tar(SIX), {}).rows
    assert single["pixels"][0] == packed["pixels"][0]
    assert packed["pixels"].n_unique() == 6


def test_a_bad_member_is_quarantined_by_name_and_the_others_stay() -> None:
    members = {**SIX, "a/note.txt": b"no image", "b/tiny.png": encoded(pixels(1, 1, 1))}
    members["a/9.png"] = encoded(pixels(9))
    found = DATA.parse("shard.tar", tar(members), {})
    assert found.rows["row"].to_list() == [0, 1, 2, 3, 4, 5, 8]
    assert found.refused.rows() == [
        (6, "a/note.txt", "not a PNG or JPEG image"),
        (7, "b/tiny.png", "1 x 1 is under half of 8 x 8"),
    ]


def test_a_shard_without_a_good_image_has_only_quarantine() -> None:
    found = DATA.parse("shard.tar", tar({"a/1.png": b"x", "a/2.png": b"y"}), {})
    assert (found.rows.height, found.refused.height) == (0, 2)


def test_folders_in_a_tar_are_no_records() -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        member = tarfile.TarInfo("a/0.png")
        member.size = len(SIX["a/0.png"])
        archive.addfile(member, io.BytesIO(SIX["a/0.png"]))
    found = DATA.parse("shard.tar", packed.getvalue(), {})
    assert found.rows["row"].to_list() == [0]


@pytest.mark.parametrize(
    "length",
    [
        1,
        HEADERS[1] - 10,
        HEADERS[3],
        HEADERS[3] + 100,
        HEADERS[3] + BLOCK,
        HEADERS[3] + BLOCK + 20,
        len(tar(SIX).rstrip(b"\0")),
    ],
    ids=["start", "in-data", "between", "in-header", "after-header", "in-data-2", "no-end-mark"],
)
def test_a_tar_cut_short_anywhere_is_refused_whole(length: int) -> None:
    with pytest.raises(RefusedObject, match="not a whole tar archive"):
        DATA.parse("shard.tar", tar(SIX)[:length], {})


@pytest.mark.parametrize("member", [0, 2, 5])
def test_a_damaged_header_loses_no_record_silently(member: int) -> None:
    damaged = bytearray(tar(SIX))
    damaged[HEADERS[member] + 20] ^= 0xFF
    with pytest.raises(RefusedObject, match="not a whole tar archive"):
        DATA.parse("shard.tar", bytes(damaged), {})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "the object is empty"),
        (b"no archive", "not a whole tar archive"),
        (tar({}), "the archive holds no file"),
    ],
)
def test_an_archive_of_nothing_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedObject, match=reason):
        DATA.parse("shard.tar", payload, {})


def test_an_image_of_another_class_fails_its_check() -> None:
    rows = DATA.parse("shard.tar", tar({**SIX, "c/0.png": encoded(pixels(9))}), {}).rows
    objective = Classification(target="label", labels=("a", "b"))
    checks = [*DATA.checks(), *objective.checks()]
    passed = rows.filter(*(check.holds for check in checks))
    assert passed["label"].to_list() == list("ababab")
    assert "not one of the line's classes" in {check.reason for check in checks}


# ---- features


def fitted(size: ImageSize = SIZE) -> ImageFeatures:
    return ImageFeatures(size=size, mean=100.0, deviation=50.0)


def test_fit_gives_the_moments_of_all_pixels() -> None:
    rows = DATA.parse("shard.tar", tar(SIX), {}).rows
    found = DATA.fit([DATA.summarise(rows.head(2)), DATA.summarise(rows.tail(4))])
    every = np.stack([pixels(i) for i in range(6)])
    assert found.mean == pytest.approx(every.mean())
    assert found.deviation == pytest.approx(every.std())


def test_blank_images_are_fitted_to_a_usable_deviation() -> None:
    rows = DATA.parse("a/0.png", encoded(np.full((8, 8), 9, np.uint8)), {}).rows
    found = DATA.fit([DATA.summarise(rows)])
    assert (found.mean, found.deviation) == (9.0, 1.0)


@pytest.mark.parametrize("size", [SIZE, COLOUR], ids=["grey", "colour"])
def test_what_a_person_sends_is_encoded_as_in_training(size: ImageSize) -> None:
    data = Images(raw="shapes/", size=size, split=ByHash())
    row = data.parse("a/0.png", encoded(pixels(5, 8, 8, 3)), {}).rows
    features = fitted(size)
    payload, media_type = features.write(row)
    assert media_type == "image/png"
    sent, trained = features.encode(features.read(payload, media_type)), features.encode(row)
    np.testing.assert_array_equal(sent["image"], trained["image"])
    for spec in features.inputs:
        spec.check(sent[spec.name])


def test_a_request_that_is_no_image_is_refused() -> None:
    with pytest.raises(RefusedRequest, match="not a PNG or JPEG image"):
        fitted().read(b"{}", "image/png")


def test_idx_images_are_read_without_their_labels_where_they_are_scored() -> None:
    images = pixels(0, 3, 8, 8)
    payload = bytes((0, 0, 8, 3)) + struct.pack(">3I", *images.shape) + images.tobytes()
    parsed = DATA.parse_unlabelled("new-images-idx3-ubyte", payload, {}, "label")
    assert parsed.rows.get_column("row").to_list() == [0, 1, 2]
    assert (parsed.rows.get_column("image").to_numpy().reshape(-1, 8, 8) == images).all()
    assert dict(DATA.joined) == {}
    with pytest.raises(RefusedObject, match="no labels"):
        DATA.parse("new-images-idx3-ubyte", payload, {})
