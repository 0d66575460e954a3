import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer
from starlette.applications import Starlette

from deployments.local import store as own_store
from deployments.local.ports import free_ports, unanswered
from deployments.watcher.hints import Hints, follow_queue, from_message, from_webhook
from deployments.watcher.listing import MOST
from deployments.watcher.webhook import Pulse, application, listen
from tasks import arrivals
from tasks.store import store
from tests.conftest import ROOT
from tests.deployments.stacks import until
from tests.tasks.samples import look

BUCKET = "modelmint"


@pytest.fixture
def hints() -> Hints:
    return Hints(BUCKET)


def filer(key: str) -> bytes:
    """What SeaweedFS posts, cut to what matters."""
    told = {"event_type": "create", "key": f"/buckets/{key}", "message": {"delete_chunks": True}}
    return json.dumps(told).encode()


def notification(*keys: str, bucket: str = BUCKET) -> str:
    """What S3 sends to a queue, cut to what matters."""
    s3 = [{"bucket": {"name": bucket}, "object": {"key": quote_plus(key)}} for key in keys]
    return json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": one} for one in s3]})


def test_a_hint_names_the_object_below_raw(hints: Hints) -> None:
    for key in ("modelmint/raw/digits/a b%.csv", "modelmint/raw/digits/x/y", "modelmint/raw/own/z"):
        from_webhook(hints, filer(key))
    assert hints.wait(0) == {"raw/digits/a b%.csv", "raw/digits/x/y", "raw/own/z"}
    assert hints.wait(0) == set()


@pytest.mark.parametrize(
    "key", ["modelmint/raw/digits", "modelmint/raw/", "modelmint/stages/x", "other/raw/digits/x"]
)
def test_folders_other_prefixes_and_other_buckets_are_no_news(hints: Hints, key: str) -> None:
    from_webhook(hints, filer(key))
    assert hints.wait(0) == set()


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"null", b'{"key": {}}'])
def test_what_cannot_be_read_has_everything_looked_at(hints: Hints, body: bytes) -> None:
    from_webhook(hints, body)
    from_message(hints, body.decode(errors="replace"))
    # A key that is no text is none below raw.
    assert hints.wait(0) == {""}


def test_notifications_come_directly_through_sns_and_through_eventbridge(hints: Hints) -> None:
    from_message(hints, notification("raw/one/a b+c.csv", "elsewhere/x"))
    envelope = {"TopicArn": "arn:aws:sns:x", "Message": notification("raw/two/x")}
    from_message(hints, json.dumps(envelope))
    detail = {"bucket": {"name": BUCKET}, "object": {"key": "raw/three%/x+y"}}
    from_message(hints, json.dumps({"detail-type": "Object Created", "detail": detail}))
    from_message(hints, json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}))
    from_message(hints, notification("raw/four/x", bucket="other"))
    assert hints.wait(0) == {"raw/one/a b+c.csv", "raw/two/x", "raw/three%/x+y"}


def test_the_same_object_hinted_at_often_is_one_hint(hints: Hints) -> None:
    for number in range(10_000):
        hints.tell(f"raw/digits/{number % 7}")
    assert len(hints.wait(0)) == 7
    assert hints.wait(0) == set()


def test_very_many_hints_are_one_look_at_everything(hints: Hints) -> None:
    for number in range(2 * MOST):
        hints.tell(f"raw/{number}/x")
    heard = hints.wait(0)
    assert len(heard) == MOST + 1
    assert "" in heard


def burst(*lines: str) -> tuple[list[str], set[str]]:
    """Ten thousand keys of these lines in any order, a tenth of them twice; and the keys once."""
    keys = [f"raw/{lines[n % len(lines)]}/{n}" for n in range(9_000)]
    told = [*keys, *keys[:1_000]]
    random.Random(1).shuffle(told)
    return told, set(keys)


def test_a_burst_at_the_webhook_is_one_hint_an_object(hints: Hints) -> None:
    told, keys = burst("digits", "flights")
    app, waiting = application(hints, Pulse(10.0), "secret"), iter(told)

    async def post(client: httpx.AsyncClient) -> list[int]:
        shown = {"authorization": "Bearer secret"}
        return [
            (
                await client.post("/hints", content=filer(f"{BUCKET}/{key}"), headers=shown)
            ).status_code
            for key in waiting
        ]

    async def senders() -> list[list[int]]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://watcher") as client:
            return await asyncio.gather(*(post(client) for _ in range(50)))

    answers = [one for some in asyncio.run(senders()) for one in some]
    assert answers == [204] * len(told)
    assert hints.wait(0) == keys


def status(app: Starlette, method: str, path: str, body: bytes = b"", shown: str = "") -> int:
    """The status the application answers with."""

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://watcher") as client:
            headers = {"authorization": shown}
            return (await client.request(method, path, content=body, headers=headers)).status_code

    return asyncio.run(ask())


def test_the_webhook_takes_who_shows_its_token(hints: Hints) -> None:
    app, body = application(hints, Pulse(10.0), "secret"), filer("modelmint/raw/digits/x")
    for shown in ("", "Bearer other", "secret"):
        assert status(app, "POST", "/hints", body, shown) == 401
    assert hints.wait(0) == set()
    assert status(app, "POST", "/hints", body, "Bearer secret") == 204
    assert hints.wait(0) == {"raw/digits/x"}
    assert status(app, "POST", "/hints", b"x" * (2 << 20), "Bearer secret") == 204
    assert hints.wait(0) == {""}
    # Without a token of its own it is closed, not open.
    assert status(application(hints, Pulse(10.0), ""), "POST", "/hints", body, "Bearer ") == 401


def test_the_store_itself_tells_what_lands_below_raw(hints: Hints, tmp_path: Path) -> None:
    """SeaweedFS' own webhook, heard where the watcher listens; nothing here looks at a listing."""
    (port,) = free_ports(["http"], paired=False).values()
    own_store.notify(tmp_path, f"http://127.0.0.1:{port}/hints", "secret")
    listen(hints, Pulse(10.0), "127.0.0.1", port, "secret")
    with own_store.store(tmp_path).use() as running:
        names = own_store.environment(tmp_path, running)
        s3 = boto3.session.Session().client(
            "s3",
            endpoint_url=names["AWS_ENDPOINT_URL"],
            aws_access_key_id=names["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=names["AWS_SECRET_ACCESS_KEY"],
            region_name=names["AWS_REGION"],
        )
        s3.create_bucket(Bucket=BUCKET)
        for key in ("stages/x", "raw/digits/sub folder/ü+%2F.csv", "rawer/x", "raw/late/x"):
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"1")
        heard, wanted = set[str](), {"raw/digits/sub folder/ü+%2F.csv", "raw/late/x"}
        until(lambda: bool(heard.update(hints.wait(0.1))) or heard >= wanted, seconds=60)
    # It tells of the folders that come to be, too.
    assert heard - {"raw/digits/sub folder"} == wanted


def test_a_loop_that_is_stuck_is_not_well(hints: Hints) -> None:
    pulse = Pulse(10.0)
    app = application(hints, pulse, "secret")
    assert status(app, "GET", "/health") == 200
    pulse.last -= 11.0
    assert status(app, "GET", "/health") == 503
    pulse.beat()
    assert status(app, "GET", "/health") == 200


@pytest.fixture(scope="module")
def amazon() -> Iterator[dict[str, Any]]:
    """S3 and SQS of moto's server, with a bucket that notifies a queue."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    access = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    session = boto3.session.Session(**access)
    clients: dict[str, Any] = {n: session.client(n, endpoint_url=url) for n in ("s3", "sqs")}
    s3, sqs = clients["s3"], clients["sqs"]
    s3.create_bucket(Bucket=BUCKET)
    queue = sqs.create_queue(QueueName="landed", Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
    name = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    to = {"QueueArn": name["Attributes"]["QueueArn"], "Events": ["s3:ObjectCreated:*"]}
    configuration = {"QueueConfigurations": [to]}
    s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=configuration)
    yield {**clients, "queue": queue, "url": url}
    server.stop()


def followed(hints: Hints, queue: str, client: Any, wanted: set[str]) -> None:
    """Follow the queue until all that is wanted was heard."""
    ended, heard = threading.Event(), set[str]()
    thread = threading.Thread(target=follow_queue, args=(hints, queue, client, ended))
    thread.start()
    try:
        until(lambda: bool(heard.update(hints.wait(0.1))) or heard >= wanted)
    finally:
        ended.set()
        # Wakes the long poll.
        client.send_message(QueueUrl=queue, MessageBody=notification("raw/end/x"))
        thread.join()
    # The message that wakes it may be another test's.
    assert heard - {"raw/end/x"} == wanted


def test_a_queue_is_followed_and_emptied(amazon: dict[str, Any], hints: Hints) -> None:
    s3, sqs, queue = amazon["s3"], amazon["sqs"], amazon["queue"]
    s3.put_object(Bucket=BUCKET, Key="raw/digits/sub folder/ü+%2F.csv", Body=b"1")
    s3.put_object(Bucket=BUCKET, Key="stages/x", Body=b"1")
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="raw/large/x")["UploadId"]
    where = {"Bucket": BUCKET, "Key": "raw/large/x", "UploadId": upload}
    part = s3.upload_part(**where, PartNumber=1, Body=b"1")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(**where, MultipartUpload=parts)
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"Event": "s3:TestEvent"}))
    sqs.send_message(QueueUrl=queue, MessageBody=notification("raw/twice/x"))
    sqs.send_message(QueueUrl=queue, MessageBody=notification("raw/twice/x"))
    followed(hints, queue, sqs, {"raw/digits/sub folder/ü+%2F.csv", "raw/large/x", "raw/twice/x"})
    # What was not deleted would be there again.
    time.sleep(1.5)
    left = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    assert all("raw%2Fend" in message["Body"] for message in left)


def test_a_burst_in_a_queue_is_one_hint_an_object(amazon: dict[str, Any], hints: Hints) -> None:
    told, keys = burst("digits", "flights")
    sqs, queue = amazon["sqs"], amazon["queue"]
    bodies = [notification(*told[n : n + 100]) for n in range(0, len(told), 100)]
    for first in range(0, len(bodies), 10):
        some = enumerate(bodies[first : first + 10])
        entries = [{"Id": str(n), "MessageBody": body} for n, body in some]
        sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    followed(hints, queue, sqs, keys)


def test_a_queue_that_fails_is_asked_again(amazon: dict[str, Any], hints: Hints) -> None:
    sqs, queue = amazon["sqs"], amazon["queue"]

    class Failing:
        def __init__(self) -> None:
            self.fails = 1

        def __getattr__(self, name: str) -> Any:
            if name == "receive_message" and self.fails:
                self.fails -= 1
                raise httpx.ConnectError("away")
            return getattr(sqs, name)

    sqs.send_message(QueueUrl=queue, MessageBody=notification("raw/digits/x"))
    followed(hints, queue, Failing(), {"raw/digits/x"})


def test_a_watcher_follows_its_queue_and_a_line_that_is_edited(
    amazon: dict[str, Any], prefect_service: str, bucket: str, tmp_path: Path
) -> None:
    line, source = tmp_path / "own.py", (ROOT / "tests/lines/diabetes.py").read_text()
    line.write_text(source.replace('name="diabetes"', 'name="own"'))
    (port,) = free_ports(["http"], paired=False).values()
    names = {
        "MODELMINT_LINES": str(tmp_path),
        "MODELMINT_WATCH_QUEUE": amazon["queue"],
        "AWS_ENDPOINT_URL_SQS": amazon["url"],
        # Nothing but a hint has it look a second time.
        "MODELMINT_WATCH_SWEEP": "1000000",
        "MODELMINT_WATCH_AGAIN": "1000000",
        "MODELMINT_WATCH_QUIET": "0",
        "MODELMINT_WATCH_PORT": str(port),
    }

    def lands(key: str) -> None:
        store().put(key, b"1")
        amazon["sqs"].send_message(
            QueueUrl=amazon["queue"], MessageBody=notification(key, bucket=bucket)
        )

    def told() -> int:
        last = arrivals.announced("own")
        return last.number if last else 0

    command = [sys.executable, "-m", "deployments.watcher"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | names)
    try:
        until(lambda: unanswered(port, "/health", {200}) is None)
        lands("raw/diabetes/1.csv")
        until(lambda: told() == 1)
        line.write_text(line.read_text().replace('raw="diabetes/"', 'raw="elsewhere/"'))
        lands("raw/elsewhere/another.csv")
        until(lambda: told() == 2)
        last = arrivals.announced("own")
        assert last is not None
        assert last.seen == look("raw/elsewhere/")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
