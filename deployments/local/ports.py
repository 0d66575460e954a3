"""Loopback ports: finding free ones, and asking over HTTP whether a service answers there."""

import http.client
import random
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeAlias

Ports: TypeAlias = dict[str, int]

HOST = "127.0.0.1"
# SeaweedFS listens for gRPC this far above every HTTP port.
PAIR = 10_000
LOWEST = 10_000
# The first port that the kernel gives to connections of its own choice; IANA's is higher.
OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL = 32_768
# With a third of all ports in use, 200 draws all fail once in 10^90.
DRAWS = 200


def free_ports(
    names: Sequence[str], *, paired: bool, others: Collection[int] = frozenset()
) -> Ports:
    """Give each name a port that is free now, and with `paired` also its port + 10000.

    None of either is one of `others`: they are promised, though nobody may listen there yet.
    None of them is one that the kernel gives to outgoing connections: one of those, while the
    service is down for a moment, would keep it from ever listening there again.
    Nothing stays reserved: another process may take a port before the service binds it.

    Raises:
        OSError: no free ports were found.
    """
    ports: Ports = {}
    highest, promised = first_outgoing() - (PAIR if paired else 0), frozenset(others)
    # Held open until all are drawn, so that no two names get the same port.
    held: list[socket.socket] = []
    try:
        for _ in range(DRAWS):
            if len(ports) == len(names):
                return ports
            port = random.SystemRandom().randrange(LOWEST, highest)
            if promised.intersection(occupied({"": port}, paired=paired)):
                continue
            try:
                held.append(socket.create_server((HOST, port)))
                if paired:
                    held.append(socket.create_server((HOST, port + PAIR)))
            except OSError:
                continue
            ports[names[len(ports)]] = port
    finally:
        for each in held:
            each.close()
    raise OSError(f"no free loopback ports for {', '.join(names)} after {DRAWS} tries")


def first_outgoing() -> int:
    """The first port of outgoing connections; what is usual, where all ports are theirs."""
    try:
        first = int(OUTGOING.read_text().split()[0])
    except OSError:  # not Linux
        return USUAL
    return first if first > LOWEST + PAIR else USUAL


def occupied(ports: Ports, *, paired: bool) -> list[int]:
    """The ports, and with `paired` their pairs."""
    return [*ports.values(), *([port + PAIR for port in ports.values()] if paired else [])]


def taken(ports: Ports, *, paired: bool) -> list[int]:
    """The ports, of these and with `paired` their pairs, that another process holds."""
    listening = []
    for port in occupied(ports, paired=paired):
        try:
            # create_server sets SO_REUSEADDR: closed connections that linger do not count.
            socket.create_server((HOST, port)).close()
        except OSError:
            listening.append(port)
    return listening


def unanswered(port: int, path: str, allowed: Collection[int], timeout: float = 2.0) -> str | None:
    """What is wrong with the answer to GET `path`; None when its status is one of `allowed`."""
    # http.client and not urllib: a proxy named in the environment must not be asked for loopback.
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"GET {path} on port {port} fails ({error!r})"
    finally:
        connection.close()
    return None if status in allowed else f"GET {path} on port {port} answers {status}"
