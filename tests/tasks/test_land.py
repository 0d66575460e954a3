import pytest

from models import catalog
from tasks.land import NoExampleError, land
from tasks.store import store

LINE = catalog.find("digits")


def test_a_slice_lands_below_the_prefix_of_its_line(bucket: str) -> None:
    landed = land(LINE, "shard-3")
    assert [(item.key, item.size) for item in store().list("")] == [
        (f"raw/digits/{entry['object']}", entry["bytes"]) for entry in landed
    ]
    assert [entry["object"] for entry in landed] == ["shard-3.tar"]


def test_landing_again_is_the_same(bucket: str) -> None:
    land(LINE, "shard-3")
    before = list(store().list(""))
    land(LINE, "shard-3")
    assert list(store().list("")) == before


def test_a_slice_that_is_not_there_lists_those_there_are(bucket: str) -> None:
    with pytest.raises(NoExampleError, match="no slice 'shard-99'; it has shard-0, shard-1"):
        land(LINE, "shard-99")


def test_a_line_without_example_says_where_data_goes(bucket: str) -> None:
    line = LINE.model_copy(update={"example": None})
    with pytest.raises(NoExampleError, match=f"s3://{bucket}/raw/digits/"):
        land(line)
