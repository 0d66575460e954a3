"""uvicorn with an ASGI application that answers the same words to whatever it is sent.

No parsing, network, key or count: what an engine on uvicorn can at most reach with one process.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]
# As long as the answer of ten probabilities in JSON.
ANSWER = b" " * 330
HEADERS = [(b"content-length", b"%d" % len(ANSWER)), (b"content-type", b"application/json")]


async def application(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Read the request to its end, answer."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


if __name__ == "__main__":
    uvicorn.run(
        application, port=int(os.environ["PORT"]), loop="uvloop", http="httptools",
        lifespan="off", access_log=False,
    )  # fmt: skip
