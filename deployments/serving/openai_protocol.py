"""The words of OpenAI's completions API: what is asked, what is answered, and how errors look.

After https://platform.openai.com/docs/api-reference/completions. What is not understood is refused,
and never passed over.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deployments.serving.protocol import ProtocolError
from models.generation import MOST, Sampling, Step
from models.open import first
from models.vocabulary import SPECIAL, Vocabulary

PATHS = ("/v1/completions", "/v1/models")
COMPLETION = "cmpl-"
"""What a completion's id begins with; the id of its request follows."""
MOST_PROMPTS = 16
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "suffix": ("",),
}  # fmt: skip
"""Settings that are understood only where they change nothing."""


class StreamOptions(BaseModel):
    """What a stream holds besides the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(BaseModel):
    """The body of `POST /v1/completions`; `top_k` is ours."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=60)
    prompt: str | list[str] = ""
    max_tokens: int | None = Field(16, ge=1, le=MOST)
    temperature: float | None = Field(1.0, ge=0, le=10)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=0, le=100_000)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(1, ge=1, le=MOST_PROMPTS)
    best_of: int | None = None
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=5)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _is_understood(self) -> "CompletionRequest":
        for name, neutral in NEUTRAL.items():
            if getattr(self, name) not in (None, *neutral):
                raise ValueError(f"{name} is not understood here")
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of must be n: every text is sent")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo and logprobs do not go together here")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for a stream")
        if not 1 <= len(self.prompts) * (self.n or 1) <= MOST_PROMPTS:
            raise ValueError(f"1 to {MOST_PROMPTS} texts are written at a time")
        return self

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def sampling(self, seed: int) -> Sampling:
        """How to draw with this seed; raises ValidationError for a wrong stop."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            tokens=self.max_tokens or 16,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            seed=seed,
            stop=tuple(stop),
        )


def parse(body: bytes) -> CompletionRequest:
    """The request in a body; raises ProtocolError 400."""
    try:
        given = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise ProtocolError(400, f"the request is not JSON: {error}") from None
    if type(given) is not dict:
        raise ProtocolError(400, "the request must be a JSON object")
    # Pydantic words every error there is: a minute's work of ten megabytes of empty lists.
    if unknown := sorted(given.keys() - CompletionRequest.model_fields.keys()):
        raise ProtocolError(400, f"{', '.join(unknown)[:200]}: not understood here")
    for name, value in given.items():
        if type(value) in (list, dict) and len(value) > MOST_PROMPTS:
            raise ProtocolError(400, f"{name} holds {len(value):,}, at most {MOST_PROMPTS}")
    try:
        return CompletionRequest.model_validate(given)
    except ValidationError as error:
        raise ProtocolError(400, first(error).removeprefix(": ")) from None


class Tokens:
    """The `logprobs` of one choice, told in parts that follow its text.

    A token is told once the text has reached it: what waits because it may begin a stop, and what
    a stop has cut off, is not.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._pieces = vocabulary.pieces
        self._waiting: list[tuple[int, Step]] = []
        self._begun = self._certain = 0

    def after(self, steps: Sequence[Step]) -> dict[str, Any]:
        """What these steps make certain."""
        for step in steps:
            self._waiting.append((self._begun, step))
            self._begun += step.characters
            self._certain += len(step.text)
        told: list[tuple[int, Step]] = []
        ended = steps[-1].end == "length"
        while self._waiting and (self._waiting[0][0] < self._certain or ended):
            told.append(self._waiting.pop(0))
        return {
            "tokens": [self._name(step.token) for _, step in told],
            "token_logprobs": [step.log_probability for _, step in told],
            "top_logprobs": [
                {self._name(token): value for token, value in step.likeliest} for _, step in told
            ],
            "text_offset": [offset for offset, _ in told],
        }

    def _name(self, token: int) -> str:
        if token < SPECIAL:
            return ("<padding>", "<unknown>", "<beginning>")[token]
        piece = self._pieces[token - SPECIAL]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def speaks_openai(path: str) -> bool:
    """Whether what is asked there is answered in OpenAI's words."""
    return path in PATHS or path.startswith("/v1/models/")


def refusal(status: int, code: str, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "insufficient_quota" if code == "quota_exceeded" else "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
