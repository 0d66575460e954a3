import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from deployments.serving import events
from deployments.serving.events import EventStream, event

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}


def told(send: Any, leave: asyncio.Event | None = None) -> list[str]:
    """What became of a source of endless events whose caller reads them by `send`."""
    found: list[str] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield event({"text": "a\nb"}, "piece")
                await asyncio.sleep(0)
        finally:
            found.append("closed")

    async def receive() -> dict[str, Any]:
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    asyncio.run(asyncio.wait_for(EventStream(endless(), {})(SCOPE, receive, send), 20))
    return found


def test_an_event_is_a_name_and_one_line_of_json() -> None:
    assert event({"text": "a\nb"}, "piece") == b'event: piece\ndata: {"text":"a\\nb"}\n\n'
    assert event(1) == b"data: 1\n\n"


def test_what_makes_events_ends_when_the_caller_leaves() -> None:
    leave = asyncio.Event()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:
            leave.set()

    assert told(send, leave) == ["closed"]
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"


def test_what_makes_events_ends_when_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SEND_SECONDS", 0.05)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    assert told(send) == ["closed"]
