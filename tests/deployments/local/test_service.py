import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from deployments.local.ports import Ports, free_ports, unanswered
from deployments.local.processes import alive
from deployments.local.service import ROOT, Service, ServiceError
from tasks.process import identity

pytestmark = pytest.mark.timeout(120)

SLEEP = [sys.executable, "-c", "import time; time.sleep(3600)"]

USER = """
import sys
from pathlib import Path
from test_service import sleeper, web
with {service}(Path(sys.argv[1])).use() as running:
    print(running.pid, flush=True)
    sys.stdin.read()
"""


def serve(ports: Ports) -> list[str]:
    return [
        *(sys.executable, "-m", "http.server"),
        *("--bind", "127.0.0.1", str(ports["http"])),
    ]


def web(home: Path) -> Service:
    return Service(
        name="web",
        state=home / "web",
        command=serve,
        missing=lambda ports: unanswered(ports["http"], "/", {200}, timeout=1.0),
        stop_timeout=1.0,
        patience=1.0,
    )


def sleeper(home: Path) -> Service:
    return replace(web(home), command=lambda _: SLEEP, start_timeout=3600.0)


class User:
    """Another process that uses the service until it is told to leave."""

    def __init__(self, home: Path, service: str = "web") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER.format(service=service), str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
        )

    def service_pid(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def leave(self) -> int:
        self.process.communicate()
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def listener(port: int) -> Iterator[None]:
    """A stranger that answers 200 on `port`."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", port), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def use_once(service: Service) -> None:
    with service.use():
        pass


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and alive(psutil.Process(pid))


def test_starts_answers_and_stops(tmp_path: Path) -> None:
    with web(tmp_path).use() as running:
        with urllib.request.urlopen(running.url) as answer:
            assert answer.status == 200
        assert running.name == "web"
        assert running.url == f"http://127.0.0.1:{running.ports['http']}"
        assert json.loads((tmp_path / "web/service.json").read_text())["pid"] == running.pid
    assert not runs(running.pid)
    assert "GET / HTTP/1.1" in running.log.read_text()
    assert not (tmp_path / "web/service.json").exists()


def test_stops_when_its_user_fails(tmp_path: Path) -> None:
    pids = []

    def fail() -> NoReturn:
        with web(tmp_path).use() as running:
            pids.append(running.pid)
            raise KeyError("in the user's code")

    with pytest.raises(KeyError, match="in the user's code"):
        fail()
    assert not runs(pids[0])


def test_users_that_come_at_once_share_one_and_the_last_stops_it(tmp_path: Path) -> None:
    users = [User(tmp_path) for _ in range(3)]
    pids = {user.service_pid() for user in users}
    assert len(pids) == 1
    pid = pids.pop()
    for user in users[:-1]:
        assert user.leave() == 0
        assert runs(pid)
    assert users[-1].leave() == 0
    assert not runs(pid)


def test_two_users_in_one_process_count_as_two(tmp_path: Path) -> None:
    with web(tmp_path).use() as outer:
        with web(tmp_path).use() as inner:
            assert inner == outer
        assert unanswered(outer.ports["http"], "/", {200}) is None
    assert not runs(outer.pid)


def test_a_killed_user_does_not_count(tmp_path: Path) -> None:
    user = User(tmp_path)
    pid = user.service_pid()
    user.kill()
    with web(tmp_path).use() as running:
        assert running.pid == pid
    assert not runs(pid)


def test_ctrl_c_in_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    with web(tmp_path).use() as running:
        assert os.getpgid(running.pid) == running.pid
        assert os.getsid(running.pid) == running.pid


def test_a_hung_one_is_replaced_at_the_same_address(tmp_path: Path) -> None:
    with web(tmp_path).use() as hung:
        os.kill(hung.pid, signal.SIGSTOP)
        with web(tmp_path).use() as fresh:
            assert not runs(hung.pid)
            assert fresh.pid != hung.pid
            assert fresh.ports == hung.ports
            assert unanswered(fresh.ports["http"], "/", {200}) is None


def test_a_start_cut_off_is_replaced(tmp_path: Path) -> None:
    user = User(tmp_path, "sleeper")
    record = tmp_path / "web/service.json"
    while not record.exists():
        assert user.process.poll() is None
        time.sleep(0.01)
    pid = json.loads(record.read_text())["pid"]
    user.kill()
    assert runs(pid)
    with web(tmp_path).use() as running:
        assert not runs(pid)
        assert running.pid != pid


def test_a_lost_record_does_not_lose_the_process(tmp_path: Path) -> None:
    user = User(tmp_path)
    pid = user.service_pid()
    user.kill()
    (tmp_path / "web/service.json").write_text("{")
    with web(tmp_path).use() as running:
        assert not runs(pid)
        assert running.pid != pid


def test_a_child_that_outlived_its_killed_parent_is_ended(tmp_path: Path) -> None:
    parent = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    service = replace(
        web(tmp_path), command=lambda ports: [sys.executable, "-c", parent, *serve(ports)]
    )
    with service.use() as running:
        (child,) = psutil.Process(running.pid).children()
        parent_process = psutil.Process(running.pid)
        parent_process.kill()
        # Found before the kernel has ended it, it would rightly pass for the service.
        psutil.wait_procs([parent_process], timeout=10)
        with service.use() as fresh:
            assert not alive(child)
            assert fresh.pid != running.pid


@pytest.mark.parametrize(("boot", "ticks"), [("", -1), ("", 1), ("another", 0)])
def test_a_stranger_with_the_recorded_pid_is_left_alone(
    tmp_path: Path, boot: str, ticks: int
) -> None:
    stranger = subprocess.Popen(SLEEP)
    try:
        known, _, started = identity(stranger.pid).rpartition("/")
        other = f"{boot}{known}/{int(started) + ticks}"
        state = tmp_path / "web"
        state.mkdir()
        record = {"pid": stranger.pid, "identity": other, "ports": {"http": 9}, "command": SLEEP}
        (state / "service.json").write_text(json.dumps(record))
        with web(tmp_path).use() as running:
            assert running.pid != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("step", [-100, 100])
def test_a_clock_that_jumps_makes_no_stranger_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with web(tmp_path).use() as running:
        before, now = psutil.boot_time(), time.time()
        # What the kernel says of the boot follows the clock; so does what psutil says of starts.
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: before + step)
        monkeypatch.setattr("time.time", lambda: now + step)
        assert web(tmp_path).running() == running
        with web(tmp_path).use() as again:
            assert again == running


def test_without_linux_the_create_time_tells_processes_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with web(tmp_path).use() as running, web(tmp_path).use() as again:
        assert again == running
    assert not web(tmp_path).running()


def test_one_that_exits_at_once_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    lines = "import sys; [print('line', i) for i in range(40)]; sys.exit('out of flour')"
    service = replace(
        web(tmp_path), command=lambda _: [sys.executable, "-c", lines], start_timeout=3600.0
    )
    with pytest.raises(ServiceError) as caught:
        use_once(service)
    message = str(caught.value)
    assert message.startswith("web: exited before it served")
    assert "out of flour" in message
    assert "line 39" in message
    assert "line 20" not in message
    assert str(service.log) in message


def test_one_that_never_serves_is_ended(tmp_path: Path) -> None:
    service = replace(sleeper(tmp_path), start_timeout=0.5)
    with pytest.raises(ServiceError, match=r"does not serve after 0\.5 s: GET / on port"):
        use_once(service)


def test_a_program_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    service = replace(web(tmp_path), command=lambda _: [str(tmp_path / "nothing")])
    with pytest.raises(ServiceError, match="nothing cannot be run"):
        use_once(service)


@pytest.mark.parametrize("rivals", [2, 3])
def test_ports_taken_in_between_are_given_up_for_others(tmp_path: Path, rivals: int) -> None:
    tried: list[int] = []
    taken_by_rivals = []

    def command(ports: Ports) -> list[str]:
        tried.append(ports["http"])
        if len(tried) <= rivals:
            rival = listener(ports["http"])
            rival.__enter__()
            taken_by_rivals.append(rival)
        return serve(ports)

    service = replace(web(tmp_path), command=command)
    try:
        if rivals < 3:
            with service.use() as running:
                assert running.ports["http"] == tried[-1]
        else:
            with pytest.raises(ServiceError, match="Address already in use"):
                use_once(service)
    finally:
        for rival in taken_by_rivals:
            rival.__exit__(None, None, None)
    assert len(set(tried)) == 3


def test_an_answer_from_another_program_is_not_taken_for_its_own(tmp_path: Path) -> None:
    (port,) = free_ports(["http"], paired=False).values()
    with listener(port):
        service = replace(
            sleeper(tmp_path),
            missing=lambda _: unanswered(port, "/", {200}),
            start_timeout=0.5,
        )
        with pytest.raises(ServiceError, match="is answered by another program"):
            use_once(service)


def test_a_full_disk_is_reported_before_the_start(tmp_path: Path) -> None:
    service = replace(web(tmp_path), disk=1 << 62)
    with pytest.raises(ServiceError, match=rf"no free disk: \d+ bytes in {tmp_path}/web"):
        use_once(service)
    assert not service.log.exists()


def test_two_homes_do_not_meet(tmp_path: Path) -> None:
    with web(tmp_path / "a").use() as a, web(tmp_path / "b").use() as b:
        assert a.pid != b.pid
        assert a.ports != b.ports
        assert runs(a.pid)
    assert not runs(a.pid)
    assert not runs(b.pid)


def test_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "of the user")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    service = replace(web(tmp_path), hidden=("SECRET_",), environment=lambda p: {"P": str(p)})
    with service.use() as running:
        environment = psutil.Process(running.pid).environ()
        assert "SECRET_KEY" not in environment
        assert environment["PYTHONPATH"] == f"{ROOT}{os.pathsep}/elsewhere"
        assert environment["P"] == str(running.ports)
        assert Path(psutil.Process(running.pid).cwd()) == tmp_path / "web"


def test_a_remembered_port_that_a_sibling_has_is_drawn_anew(tmp_path: Path) -> None:
    first, second = web(tmp_path), replace(web(tmp_path), state=tmp_path / "second")
    ports = first.plan()
    assert first.plan() == ports
    second.state.mkdir()
    (second.state / "ports.json").write_text(json.dumps(ports))
    assert second.plan() == ports
    other = second.plan(ports.values())
    assert other != ports
    assert second.plan(ports.values()) == other
    # One that runs keeps it: whoever is planned next makes way.
    with first.use():
        assert first.plan(ports.values()) == ports
