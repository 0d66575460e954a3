"""Texts that language models write for callers: in turns, bounded, and charged by the token.

Of a text a few tokens are written at a time; then whoever else waits for a core has its turn, by
the rules of `batching`. A row of a language model is a token that is read or written. Tokens of
different texts are not computed together: the last bits of a batched row may differ, and the same
seed is to write the same text.
"""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np

from deployments.serving.inference import Call, Inference
from deployments.serving.ledger import Counts, Ledger
from deployments.serving.protocol import ProtocolError, Tensors
from models.generation import SAMPLING, Sampling, Step
from models.language import NextToken
from models.objectives import NotFiniteError
from models.vocabulary import BEGINNING, PADDING

TURN_SECONDS = 0.005
"""About how long others wait for a turn of a text, unless one token takes longer."""
MOST_TEXTS, MOST_OF_TENANT = 128, 32
"""Texts that a worker writes at a time, and of those the texts of one tenant."""


class Text(NamedTuple):
    """A text to be written."""

    tensors: Tensors
    """Of its prompt, one row."""
    sampling: Sampling
    choice: int = 0
    likeliest: int = 0
    """Likeliest tokens to name with every token."""

    @property
    def read(self) -> int:
        """Tokens of the prompt."""
        tokens = self.tensors["tokens"]
        return int(np.count_nonzero((tokens != PADDING) & (tokens != BEGINNING)))


def texts(tensors: Tensors, choices: int = 1, likeliest: int = 0) -> list[Text]:
    """So many texts for each of the encoded prompts, in their order."""
    found = []
    for row, asked in enumerate(tensors[SAMPLING]):
        one = {name: t[row : row + 1] for name, t in tensors.items() if name != SAMPLING}
        sampling = Sampling.model_validate_json(asked)
        found += [Text(one, sampling, choice, likeliest) for choice in range(choices)]
    return found


class Written(NamedTuple):
    """What one turn has written of one of the texts."""

    place: int
    """Of the text, among those that were wanted."""
    steps: list[Step]


class Writing:
    """The texts that one worker writes."""

    def __init__(self, inference: Inference, ledger: Ledger) -> None:
        self._inference, self._ledger = inference, ledger
        self._open: Counter[str] = Counter()

    async def write(self, call: Call, wanted: Sequence[Text]) -> AsyncGenerator[Written, None]:
        """The texts, one turn after the other; close it to end them early.

        All tokens that may come are charged before the first, and what was not written is given
        back at the end. Raises ProtocolError: 429 for a quota, or when too much is written or
        waits; 504 past the deadline; 422 for a network that gives no finite answer.
        """
        objective = call.served.signature.objective
        if not isinstance(objective, NextToken):
            raise ProtocolError(400, f"{call.served.line} does not write texts", "no_text")
        line, most = call.served.line, sum(text.read + text.sampling.most for text in wanted)
        with self._admitted(call, len(wanted)):
            day = self._ledger.charge(call.key, line, most, call.size)
            spent = 0
            left = {
                index: objective.write(
                    call.served.run, text.tensors, text.sampling,
                    choice=text.choice, likeliest=text.likeliest,
                )
                for index, text in enumerate(wanted)
            }  # fmt: skip
            try:
                unread = {index: text.read for index, text in enumerate(wanted)}
                while left:
                    for index, steps in list(left.items()):
                        found = await self._inference.turn(call, partial(_turn, steps))
                        spent += len(found) + unread.pop(index, 0)
                        if found[-1].end is not None:
                            del left[index]
                        yield Written(index, found)
            finally:
                none = Counts(requests=0 if spent else -1, rows=spent - most)
                self._ledger.add(call.key, line, none, day)

    @contextmanager
    def _admitted(self, call: Call, count: int) -> Iterator[None]:
        of = call.key.tenant
        if self._open[of] + count > MOST_OF_TENANT or self._open.total() + count > MOST_TEXTS:
            message = f"too many texts are being written, {self._open[of]} of them for {of}"
            raise ProtocolError(429, message, "overloaded", retry_after=1)
        self._open[of] += count
        try:
            yield
        finally:
            self._open[of] -= count
            if not self._open[of]:
                del self._open[of]


def _turn(steps: Iterator[Step]) -> list[Step]:
    """The next tokens, as many as there is time for; none come after the one that says so."""
    until, found = time.perf_counter() + TURN_SECONDS, list[Step]()
    try:
        for step in steps:
            found.append(step)
            if time.perf_counter() >= until:
                break
    except NotFiniteError as error:
        raise ProtocolError(422, str(error), "not_finite") from None
    return found
