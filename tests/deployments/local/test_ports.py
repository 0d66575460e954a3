import socket

from deployments.local.ports import first_outgoing, free_ports, occupied, taken


def test_paired_ports_leave_room_for_their_pairs() -> None:
    ports = free_ports([str(n) for n in range(8)], paired=True)
    numbers = [*ports.values(), *(port + 10_000 for port in ports.values())]
    assert len(set(numbers)) == 16
    assert max(numbers) < first_outgoing()
    assert taken(ports, paired=True) == []


def test_ports_promised_to_others_and_their_pairs_are_not_drawn() -> None:
    even = range(0, 65536, 2)
    for paired in (False, True):
        # Where only the pairs of others' ports are promised, too: those are above 20000.
        for others in (even, even[10_000:]):
            ports = free_ports([str(n) for n in range(20)], paired=paired, others=others)
            assert not set(others).intersection(occupied(ports, paired=paired))


def test_no_outgoing_connection_takes_the_port_of_a_service_that_is_down() -> None:
    ports = free_ports([str(n) for n in range(64)], paired=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = [socket.create_connection(server.getsockname()) for _ in range(16)]
        for connection in given:
            assert connection.getsockname()[1] >= first_outgoing()
            connection.close()
    assert max(ports.values()) < first_outgoing()


def test_a_taken_pair_is_seen() -> None:
    ports = free_ports(["http"], paired=True)
    pair = ports["http"] + 10_000
    with socket.create_server(("127.0.0.1", pair)):
        assert taken(ports, paired=True) == [pair]
        assert taken(ports, paired=False) == []
