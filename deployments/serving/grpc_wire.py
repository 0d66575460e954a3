"""What a message will be in memory, told from its bytes: protobuf does not bound what it makes.

A whole number of one byte takes eight, an empty tensor forty times its two, and nothing else runs
while a message is parsed. Raw contents stay as they are.
"""

from google.protobuf.message import DecodeError

from deployments.serving.protocol import ProtocolError

MOST_TYPED = 1_000_000
"""Bytes of a message beside its raw contents: some 30 ms of parsing, and up to 45 MB."""
_RAW = 7
"""The number of `raw_input_contents`; no other message that is taken has such a field."""
_NUMBER, _EIGHT, _SIZED, _GROUP, _GROUP_END, _FOUR = range(6)
"""Kinds of a field, as its tag tells them."""


def check_size(body: bytes) -> None:
    """Raises ProtocolError 413 for a message with too much to parse, DecodeError for none."""
    if len(body) <= MOST_TYPED:
        return
    at, raw = 0, 0
    try:
        # Each turn passes two bytes that count or more, so few turns pass them all.
        while at < len(body) and at - raw <= MOST_TYPED:
            tag, at = _number(body, at)
            kind = tag & 7
            if kind == _SIZED:
                size, at = _number(body, at)
                at += size
                raw += size if tag >> 3 == _RAW else 0
            elif kind == _NUMBER:
                _, at = _number(body, at)
            elif kind in (_EIGHT, _FOUR):
                at += 8 if kind == _EIGHT else 4
            elif kind not in (_GROUP, _GROUP_END):
                raise DecodeError(f"kind {kind} of a field")
    except IndexError:
        raise DecodeError("the message is cut off") from None
    if at > len(body):
        raise DecodeError("the message is cut off")
    if at - raw > MOST_TYPED:
        raise ProtocolError(
            413,
            f"the message has over {MOST_TYPED:,} bytes beside raw contents: raw_input_contents"
            " take more",
            "too_large",
        )


def _number(body: bytes, at: int) -> tuple[int, int]:
    """The number of variable length that begins there, and where it ends; may raise IndexError."""
    found = shift = 0
    while body[at] & 128:
        found |= (body[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if shift == 70:
            raise DecodeError("a number has over ten bytes")
    return found | body[at] << shift, at + 1
