import socket
import threading

import polars as pl
import pytest

from models.digests import IntegrityError, Manifest, bytes_digest
from tasks.store import MissingError, StoreError, content_key, store, table_key

TABLE = pl.DataFrame({"a": [1, None, 3], "b": ["x", "y", None]})


def test_content_is_found_by_its_digest(bucket: str) -> None:
    digest = store().put_content(b"hello")
    assert digest == bytes_digest(b"hello") == store().put_content(b"hello")
    assert store().get_content(digest) == b"hello"
    assert [item.key for item in store().list("content/")] == [content_key(digest)]


def test_altered_content_is_noticed(bucket: str) -> None:
    digest = store().put_content(b"hello")
    store().put(content_key(digest), b"hellO")
    with pytest.raises(IntegrityError, match=f"{digest} was altered"):
        store().get_content(digest)


def test_a_table_comes_back_whole(bucket: str) -> None:
    digest = store().put_table(TABLE)
    assert digest == store().put_table(pl.concat([TABLE.head(1), TABLE.tail(2)], rechunk=False))
    found = store().get_table(digest)
    assert found.equals(TABLE)
    assert found.schema == TABLE.schema


def test_an_altered_table_is_noticed(bucket: str) -> None:
    digest = store().put_table(TABLE)
    other = store().put_table(TABLE.reverse())
    store().put(table_key(digest), store().get(table_key(other)).content)
    with pytest.raises(IntegrityError, match="was altered"):
        store().get_table(digest)
    store().put(table_key(digest), b"no parquet")
    with pytest.raises(IntegrityError, match="is no table"):
        store().get_table(digest)


def test_a_folder_is_its_manifest(bucket: str) -> None:
    files = {"a.bin": b"1", "b.bin": b"2"}
    manifest = store().put_folder(files)
    assert manifest == Manifest.of(files)
    assert {name: store().get_file(manifest, name) for name in files} == files


def test_what_is_not_there_is_missing(bucket: str) -> None:
    digest = bytes_digest(b"never stored")
    for read in (
        lambda: store().get("a/b"),
        lambda: store().get_content(digest),
        lambda: store().get_table(digest),
    ):
        with pytest.raises(MissingError, match=f"s3://{bucket}/.*there is no such object"):
            read()
    assert not store().exists("a/b")
    assert list(store().list("a/")) == []
    store().delete("a/b")


def test_a_bucket_that_is_not_there_is_named(
    store_service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMINT_BUCKET", "no-such-bucket")
    with pytest.raises(MissingError, match="s3://no-such-bucket/a"):
        store().get("a")


def test_objects_are_listed_in_order_over_many_pages(bucket: str) -> None:
    keys = [f"many/{number:04d}" for number in range(1005)]
    for key in reversed(keys):
        store().put(key, b"")
    store().put("other/1", b"x")
    assert [item.key for item in store().list("many/")] == keys


def test_a_listing_tells_size_and_etag(bucket: str) -> None:
    store().put("a", b"123")
    (first,) = store().list("")
    store().put("a", b"456")
    (second,) = store().list("")
    assert first.size == second.size == 3
    assert first.etag != second.etag


def test_an_object_overwritten_since_it_was_listed_is_not_read(bucket: str) -> None:
    store().put("a", b"before")
    (listed,) = store().list("a")
    assert store().get("a", etag=listed.etag).content == b"before"
    store().put("a", b"after")
    with pytest.raises(MissingError, match="was overwritten since it was listed"):
        store().get("a", etag=listed.etag)


def test_put_new_never_overwrites(bucket: str) -> None:
    assert store().put_new("a", b"first")
    assert not store().put_new("a", b"second")
    assert store().get("a").content == b"first"
    store().delete("a")
    assert store().put_new("a", b"third")


@pytest.mark.parametrize("attempt", range(2))
def test_put_new_has_one_winner(bucket: str, attempt: int) -> None:
    start = threading.Barrier(6)
    won: list[int] = []

    def race(number: int) -> None:
        start.wait()
        if store().put_new(f"race/{attempt}", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store().get(f"race/{attempt}").content == str(won[0]).encode()


@pytest.mark.timeout(60)
def test_a_store_that_does_not_answer_is_an_error(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(StoreError, match=f"the store at {address} does not answer for a/b"):
            store().get("a/b")
    monkeypatch.undo()


def test_wrong_credentials_are_an_error_that_names_the_object(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreError, match=f"s3://{bucket}/a: the store refuses"):
        store().put("a", b"")
