"""What a server does unless it is told otherwise; `--help` shows it, and waits for no import."""

MAX_BODY = 16_000_000
"""Bytes of a request's body."""
BODY_SECONDS = 30.0
"""Until a body must have arrived."""
MOST_HELD = 256_000_000
"""Bytes that the requests of one worker process may hold."""
ANSWER_SECONDS = 30.0
"""Until the answer to a request that names no deadline."""
CACHE_BYTES = 64_000_000
"""Size of a worker's response cache; 0 is none."""
DECODERS = 2
"""Processes of one worker that decode at once."""
DECODE_BYTES = 1_000_000_000
"""Of memory that one request may take to decode."""
DECODE_SECONDS = 5
"""Of a processor that it may take."""
