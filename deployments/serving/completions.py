"""Routes for OpenAI's clients: `/v1/completions`, and `/v1/models`, where a model is a line.

`verses` is what answers by default, a canary included, `verses@3` is version 3. The digest of the
version is the `system_fingerprint`: the same seed and fingerprint write the same text.
"""

import base64
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving.access import allow
from deployments.serving.capture import Capture
from deployments.serving.events import event
from deployments.serving.folder import LINE, NUMBER, matches, version_folder
from deployments.serving.http import (
    INLINE_BYTES,
    Body,
    as_json,
    deadline,
    hurried,
    media_type,
    request_id,
)
from deployments.serving.inference import Inference, in_thread
from deployments.serving.openai_protocol import (
    COMPLETION,
    CompletionRequest,
    Tokens,
    parse,
    refusal,
)
from deployments.serving.predictions import asking
from deployments.serving.protocol import JSON, ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.session import Served
from deployments.serving.telling import tell
from deployments.serving.traffic import Traffic
from deployments.serving.writing import Text, Writing, Written, texts
from models.data import RefusedRequest, Tensors
from models.generation import Step
from models.language import NextToken
from models.open import first
from models.passages import PassageFeatures
from models.signature import PROVENANCE_FILE


class Completions:
    """Texts that go on from prompts, in OpenAI's words; `body` reads a request within limits."""

    def __init__(
        self,
        repository: Repository,
        inference: Inference,
        writing: Writing,
        traffic: Traffic,
        capture: Capture | None,
        body: Body,
    ) -> None:
        self._repository, self._traffic, self._body = repository, traffic, body
        self._inference, self._writing, self._capture = inference, writing, capture
        # Nothing else runs while JSON is read, and of several that are read at once for longer.
        self._one = anyio.CapacityLimiter(1)

    def routes(self) -> list[Route]:
        """All of them below `/v1`."""
        return [
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model}", self.model, methods=["GET"]),
        ]

    async def complete(self, request: Request) -> Response:
        """A completion, whole or as a stream."""
        start = time.perf_counter()
        if media_type(request) != JSON:
            raise ProtocolError(415, f"the content type must be {JSON}", "media_type")
        until = deadline(request, self._inference.seconds)
        body = await self._body(request)
        read = partial(parse, body)
        small = len(body) <= INLINE_BYTES
        key, named = request.state.key, hurried(request)
        with self._inference.unnamed(key, len(body), hurried=named):
            asked = read() if small else await in_thread(read, until, self._one)
            line, number = _named(asked.model)
            allow(request, "predict", line)
            request.path_params.update(name=line, version=number)
            served = await self._traffic.choose(request)
        request.state.headers = served.headers
        call = asking(request, served, self._inference.seconds)._replace(size=len(body))
        seed = secrets.randbits(48) if asked.seed is None else asked.seed % 2**63
        with self._inference.metered(call):
            tensors = await in_thread(partial(_encoded, served, asked, seed), call.deadline)
        wanted = texts(tensors, asked.n or 1, asked.logprobs or 0)
        answer = _Answer(request_id(request), served, asked, wanted)

        def done(steps: list[list[Step]], size: int) -> None:
            rows = sum(text.read for text in wanted) + sum(map(len, steps))
            self._inference.answered(call, "complete", start, rows, size)
            if self._capture is not None and call.store:
                self._capture.take(served, tensors)

        return await tell(
            request,
            self._writing.write(call, wanted),
            len(wanted),
            answer,
            served.headers | {"modelmint-seed": f"{seed}"},
            bool(asked.stream),
            done,
        )

    async def models(self, request: Request) -> Response:
        """The language models this key may read, every version under a name of its own too."""
        key = request.state.key
        found = []
        for name, line in self._repository.lines.items():
            writes = any(_writes(one) for one in line.versions.values())
            if not writes or not key.allows("read", name):
                continue
            # Those out of memory too: of a line all versions write, or none does.
            numbers = sorted((n for n in line.digests if line.answers(n)), key=int)
            named = [(f"{name}@{number}", number) for number in numbers]
            if line.default in numbers:
                named.insert(0, (name, line.default or ""))
            for model, number in named:
                with suppress(ProtocolError):  # it went meanwhile
                    found.append(await self._described(model, name, number, line.digests[number]))
        return as_json({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One of them."""
        model = request.path_params["model"]
        line, number = _named(model)
        allow(request, "read", line)
        served = await anyio.to_thread.run_sync(self._repository.wake, line, number)
        if not _writes(served):
            raise ProtocolError(404, f"{line} does not write texts", "model_not_found")
        found = await self._described(model, served.line, served.number, served.digest)
        return as_json(found, headers=served.headers)

    async def _described(self, model: str, line: str, number: str, digest: str) -> dict[str, Any]:
        path = version_folder(self._repository.root, line, number) / PROVENANCE_FILE
        return {
            "id": model,
            "object": "model",
            "created": await anyio.to_thread.run_sync(_created, path, digest),
            "owned_by": "modelmint",
            "version": number,
            "digest": digest,
        }


class _Answer:
    """What one request asked, and how its texts are told."""

    def __init__(
        self, identity: str, served: Served, asked: CompletionRequest, wanted: Sequence[Text]
    ) -> None:
        self._asked, self._wanted = asked, wanted
        self._about = {
            "id": COMPLETION + identity,
            "object": "text_completion",
            "created": int(time.time()),
            "model": f"{served.line}@{served.number}",
            "system_fingerprint": served.digest,
        }
        options = asked.stream_options
        self._usage = options is not None and options.include_usage
        objective = served.signature.objective
        assert isinstance(objective, NextToken)
        self._tokens = [Tokens(objective.vocabulary) for _ in wanted]
        self._begun: set[int] = set()

    def whole(self, steps: list[list[Step]]) -> dict[str, Any]:
        choices = [self._choice(Written(*one)) for one in enumerate(steps)]
        return {**self._about, "choices": choices, "usage": self._used(steps)}

    def part(self, written: Written) -> bytes:
        told = {"usage": None} if self._usage else {}
        return event({**self._about, "choices": [self._choice(written)], **told})

    def last(self, steps: list[list[Step]]) -> bytes:
        used = {**self._about, "choices": [], "usage": self._used(steps)}
        return (event(used) if self._usage else b"") + b"data: [DONE]\n\n"

    def refused(self, error: ProtocolError) -> bytes:
        return event(refusal(error.status, error.code, error.message))

    def _choice(self, written: Written) -> dict[str, Any]:
        index, steps = written
        text = "".join(step.text for step in steps)
        if self._asked.echo and index not in self._begun:
            text = self._asked.prompts[index // (self._asked.n or 1)] + text
        self._begun.add(index)
        return {
            "index": index,
            "text": text,
            "logprobs": None if self._asked.logprobs is None else self._tokens[index].after(steps),
            "finish_reason": steps[-1].end,
        }

    def _used(self, steps: list[list[Step]]) -> dict[str, int]:
        # A prompt is read for each of its texts, but the caller has sent it once.
        read = sum(text.read for text in self._wanted if not text.choice)
        written = sum(map(len, steps))
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }


def _named(model: str) -> tuple[str, str | None]:
    """Line and version of a model's name; raises ProtocolError 404."""
    line, at, number = model.partition("@")
    if not matches(LINE, line) or (at and not matches(NUMBER, number)):
        message = f"no model {model[:60]!r}: a model is a line, or line@version"
        raise ProtocolError(404, message, "model_not_found")
    return line, number if at else None


def _encoded(served: Served, asked: CompletionRequest, seed: int) -> Tensors:
    features = served.signature.features
    if not isinstance(features, PassageFeatures) or not _writes(served):
        raise ProtocolError(400, f"{served.line} does not write texts", "no_text")
    try:
        return features.encode(features.prompts(asked.prompts, asked.sampling(seed)))
    except ValidationError as error:
        raise ProtocolError(400, first(error)) from None
    except RefusedRequest as error:
        raise ProtocolError(400, str(error), "refused_request") from None


def _writes(served: Served) -> bool:
    return isinstance(served.signature.objective, NextToken)


@lru_cache(maxsize=1024)
def _created(path: Path, digest: str) -> int:
    """When a version was made, in seconds since 1970; ProtocolError 404 when it has gone."""
    del digest  # another version under the same number is another entry
    try:
        envelope = orjson.loads(path.read_bytes())
    except OSError:
        raise ProtocolError(404, "this version has gone", "model_not_found") from None
    statement = orjson.loads(base64.b64decode(envelope["payload"]))
    finished = statement["predicate"]["runDetails"]["metadata"]["finishedOn"]
    return int(datetime.fromisoformat(finished).timestamp())
