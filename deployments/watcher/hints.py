"""Hints that something changed: a store's webhook, and S3 notifications in an SQS queue.

A hint only hastens the look at one object's part of a listing. It may be lost, doubled, late, out
of order, or about what is long gone: the listing tells.
"""

import json
import logging
import threading
from typing import Any
from urllib.parse import unquote_plus

from deployments.watcher.listing import EVERYTHING, MOST

log = logging.getLogger("modelmint.watcher")
RAW = "raw/"
LONG_POLL = 20


class Hints:
    """The keys below `raw/` to look at, collected from any thread."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self._heard: set[str] = set()
        self._lock = threading.Lock()
        self._news = threading.Event()

    def tell(self, key: str) -> None:
        """An object of the bucket changed; what is not below `raw/` is of no interest."""
        if key.startswith(RAW) and "/" in key.removeprefix(RAW):
            self._add(key)

    def tell_all(self) -> None:
        """Something changed, and nobody knows where."""
        self._add(EVERYTHING)

    def _add(self, key: str) -> None:
        with self._lock:
            # However many made-up keys: their names need so much memory and no more.
            self._heard.add(key if len(self._heard) < MOST else EVERYTHING)
        self._news.set()

    def wake(self) -> None:
        """Have who waits look at what is due, though nothing was heard."""
        self._news.set()

    def wait(self, seconds: float) -> set[str]:
        """The keys heard of since the last call, at once, woken, or after at most `seconds`."""
        self._news.wait(max(0.0, seconds))
        with self._lock:
            self._news.clear()
            heard, self._heard = self._heard, set()
        return heard


def from_webhook(hints: Hints, body: bytes) -> None:
    """Take a SeaweedFS filer event: `key` is /buckets/<bucket>/<key of the object>."""
    try:
        path = json.loads(body)["key"]
        hints.tell(str(path).removeprefix(f"/buckets/{hints.bucket}/"))
    except (ValueError, KeyError, TypeError):
        log.warning("a webhook told something unknown, all lines are looked at: %.200r", body)
        hints.tell_all()


def from_message(hints: Hints, body: str) -> None:
    """Take an S3 notification as SQS delivers it, also through SNS or EventBridge."""
    try:
        told = json.loads(body)
        if "Message" in told and "TopicArn" in told:
            told = json.loads(told["Message"])
        if told.get("Event") == "s3:TestEvent":
            return
        for one in [told["detail"]] if "detail" in told else [r["s3"] for r in told["Records"]]:
            if one["bucket"]["name"] == hints.bucket:
                key = one["object"]["key"]
                # EventBridge sends keys as they are, S3 as a form would.
                hints.tell(key if "detail" in told else unquote_plus(key))
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("a queue told something unknown, all lines are looked at: %.200r", body)
        hints.tell_all()


def follow_queue(hints: Hints, url: str, client: Any, ended: threading.Event) -> None:
    """Take messages until told to end; a queue that fails is asked again, ever more rarely."""
    pause = 1.0
    while not ended.is_set():
        try:
            answer = client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=LONG_POLL
            )
            messages = answer.get("Messages", [])
            for message in messages:
                from_message(hints, message["Body"])
            if messages:
                entries = [
                    {"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]}
                    for n, message in enumerate(messages)
                ]
                # What is not deleted comes again, and does no harm.
                client.delete_message_batch(QueueUrl=url, Entries=entries)
            pause = 1.0
        except Exception as error:  # whatever it is, the sweep goes on and so must this
            log.warning("the queue %s fails, the sweep goes on: %s", url, error)
            ended.wait(pause)
            pause = min(60.0, 2 * pause)


def queue_thread(hints: Hints, url: str) -> threading.Thread:
    """A thread that follows the queue for as long as the process lives."""
    import boto3.session

    client = boto3.session.Session().client("sqs")
    arguments = (hints, url, client, threading.Event())
    thread = threading.Thread(target=follow_queue, args=arguments, daemon=True)
    thread.start()
    return thread
