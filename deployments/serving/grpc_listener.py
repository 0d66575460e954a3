"""How gRPC listens: what a connection may cost before anybody has shown a key, and TLS."""

from pathlib import Path
from typing import Any

import grpc

from deployments.serving import tls
from deployments.serving.folder import stamp

MOST_CALLS = 1024
"""Calls a worker process is at; more are told RESOURCE_EXHAUSTED before they are read."""
MOST_STREAMS = 256
"""Calls of one connection at once; a client keeps more of them to itself until others end."""
METADATA_BYTES = 16_384
UNREAD_BYTES = 65_535
"""What of a message comes before it is asked for; HTTP/2's own, once nothing widens it."""
HANDSHAKE_SECONDS = 10
IDLE_SECONDS = 300
"""Until a connection without a call is closed; a client's next call opens another. And until a
stream without a request is ended."""
PING_SECONDS = 60
PONG_SECONDS = 20


def options(largest: int) -> list[tuple[str, int]]:
    """The settings of a server of messages up to `largest` bytes.

    There is no greatest age of a connection: clients keep one for long, and lose nothing by that.
    """
    return [
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", MOST_STREAMS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        # Whoever is gone without a word is found out.
        ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", PONG_SECONDS * 1000),
        ("grpc.so_reuseport", 1),
        # It would let 8 MB of each call come unread. What is read comes as fast without it.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
        # Only plain messages: what a compressed one unpacks to is not bounded here.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


def credentials(private_key: Path, certificate: Path) -> Any:
    """TLS with a pair of files that are read again when they changed."""

    def read() -> Any:
        pair = private_key.read_bytes(), certificate.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair])

    seen = [stamp(private_key), stamp(certificate)]

    def changed() -> Any:
        now = [stamp(private_key), stamp(certificate)]
        if now == seen:
            return None
        try:
            tls.check(str(certificate), str(private_key))
            seen[:] = now
            return read()
        except OSError:  # it is told by the HTTP side, and the one before still counts
            return None

    return grpc.dynamic_ssl_server_credentials(read(), changed)
