"""What Prometheus is told: by a real server, and by several processes together."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from deployments.serving import metric_files
from tests.deployments.disks import fill, small_disk

ROOT = Path(__file__).resolve().parents[3]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def found(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def test_answers_rows_and_refusals_are_counted(shared: Any) -> None:
    def scrape() -> Samples:
        answer = shared.ask("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return samples(answer.body.decode())

    def counted() -> dict[str, float]:
        now = scrape()
        version = {"line": "air-time", "version": "2"}
        name = "modelmint_request_seconds_count"
        return {
            "infer": found(now, name, **version, verb="infer"),
            "predict": found(now, name, **version, verb="predict"),
            "rows": found(now, "modelmint_rows_total", **version, verb="infer"),
            "unknown": found(now, "modelmint_refusals_total", status="404", code="unknown_model"),
            "no key": found(now, "modelmint_refusals_total", status="401", code="no_key"),
        }

    before = counted()
    one = {"name": "numbers", "datatype": "FP32", "shape": [3, 2], "data": [9, 1, 9, 2, 9, 3]}
    for _ in range(2):
        path = "/v2/models/air-time/versions/2/infer"
        assert shared.ask("POST", path, {"inputs": [one]}).status == 200
    path, record = "/v1/lines/air-time/versions/2/predict", {"distance": 9, "hour": 9}
    assert shared.ask("POST", path, record).status == 200
    assert shared.ask("POST", "/v2/models/nothing/infer", {"inputs": [one]}).status == 404
    assert shared.ask("GET", "/metrics", authorization="").status == 401
    change = {name: value - before[name] for name, value in counted().items()}
    expected = {"infer": 2, "predict": 1, "rows": 6, "unknown": 1}
    assert change == expected | {"no key": 1}


def test_batches_and_the_cache_are_counted(batched: Any) -> None:
    record = {"distance": 700, "hour": 1}
    for _ in range(3):
        assert batched.ask("POST", "/v1/lines/slow/predict", record).status == 200
    now = samples(batched.ask("GET", "/metrics").body.decode())
    assert found(now, "modelmint_cache_total", line="slow", result="hit") == 2
    assert found(now, "modelmint_cache_total", line="slow", result="miss") == 1
    assert found(now, "modelmint_batch_rows_sum", line="slow", version="1") == 1
    assert found(now, "modelmint_queue_requests", line="slow") == 0


def test_no_label_is_a_callers_word(shared: Any) -> None:
    for name in ("made-up", "%22%0A"):
        shared.ask("POST", f"/v2/models/{name}/infer", {})
    assert "made-up" not in shared.ask("GET", "/metrics").body.decode()


def test_metrics_take_a_key_that_reads_everything(shared: Any) -> None:
    for scopes, status in ((["read:*"], 200), (["read:air-time"], 403), (["predict:*"], 403)):
        made = shared.ask("POST", "/v1/keys", {"tenant": "watch", "scopes": scopes}).json
        answer = shared.ask("GET", "/metrics", authorization=f"Bearer {made['key']}")
        assert answer.status == status


COUNT = """
import sys
from deployments.serving import metrics
metrics.answers("flights", "1", "infer").add(0.003, 5)
metrics.queue("flights").inc(2)
print("counted", flush=True)
sys.stdin.read()
"""


def test_workers_count_together_and_a_killed_one_is_not_forgotten(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def python(code: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
        )

    def scrape() -> Samples:
        code = "from deployments.serving import metrics; print(metrics.exposition().decode())"
        return samples(python(code).communicate()[0])

    workers = [python(COUNT) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout
            assert worker.stdout.readline() == "counted\n"
        version = {"line": "flights", "version": "1", "verb": "infer"}
        for killed, waiting in ((False, 4), (True, 2)):
            if killed:
                workers[0].send_signal(signal.SIGKILL)
                workers[0].wait()
            now = scrape()
            assert found(now, "modelmint_rows_total", **version) == 10
            assert found(now, "modelmint_request_seconds_count", **version) == 2
            assert found(now, "modelmint_request_seconds_bucket", **version, le="0.005") == 2
            assert found(now, "modelmint_request_seconds_bucket", **version, le="0.002") == 0
            assert found(now, "modelmint_queue_requests", line="flights") == waiting
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


COUNT_MUCH = """
import sys
from pathlib import Path
from deployments.serving import metric_files, metrics
metric_files.begin(Path(sys.argv[1]))
print("begun", flush=True)
for times in range(2):
    sys.stdin.readline()
    for number in range(100):
        metrics.answers("flights", str(number), "infer").add(0.003, 5)
    print("counted", flush=True)
sys.stdin.read()
"""


def test_a_full_disk_ends_nobody_who_counts_and_loses_no_count(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        worker = subprocess.Popen(
            [sys.executable, "-c", COUNT_MUCH, str(disk)],
            cwd=ROOT,
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(disk)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin
        assert worker.stdout
        try:
            assert worker.stdout.readline() == "begun\n"
            filler = fill(disk)
            for _ in range(2):
                worker.stdin.write("\n")
                worker.stdin.flush()
                assert worker.stdout.readline() == "counted\n"
                filler.unlink(missing_ok=True)
            files = list(disk.glob("*.db"))
            assert max(path.stat().st_size for path in files) > metric_files.FIRST_BYTES
            for path in files:
                assert path.stat().st_blocks * 512 >= path.stat().st_size
            registry = CollectorRegistry()
            MultiProcessCollector(registry, disk)  # type: ignore[no-untyped-call]
            now = samples(generate_latest(registry).decode())
            for number in map(str, range(100)):
                version = {"line": "flights", "version": number, "verb": "infer"}
                assert found(now, "modelmint_rows_total", **version) == 10
                assert found(now, "modelmint_request_seconds_count", **version) == 2
                assert found(now, "modelmint_request_seconds_bucket", **version, le="0.005") == 2
        finally:
            worker.kill()
            worker.communicate()


def test_a_new_server_starts_from_zero(start: Any, table: Any, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    for _ in range(2):
        server = start(root)
        assert server.ask("POST", "/v2/models/nothing/infer", {}).status == 404
        now = samples(server.ask("GET", "/metrics").body.decode())
        assert found(now, "modelmint_refusals_total", status="404", code="unknown_model") == 1
        assert server.stop() == 0


@pytest.mark.parametrize("path", ["/metrics/", "/metrics/x", "//metrics"])
def test_there_is_one_path_to_them(shared: Any, path: str) -> None:
    assert shared.ask("GET", path).status == 404
