"""What Schemathesis finds: every operation of the OpenAPI document, fuzzed against a real server.

    python -m benchmarks.fuzzing [--seconds 300] [--json]          (make fuzz)

Valid and invalid requests, at the edges of every schema and at random, and sequences of them
(stateful), all of Schemathesis' checks, once with names nobody knows and once with a line there is.
`positive_data_acceptance` alone is off where names are made up: no schema says which rows a network
takes. Goals: no server error, no violation of the document; the server is alive afterwards and its
log holds no traceback.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.measuring import options, publish
from benchmarks.served import model, modelmint

LINE = "cnn"
UNSAYABLE = "positive_data_acceptance"
"""The check that a valid request is accepted; a document cannot say all that makes one valid."""


class Found(NamedTuple):
    """What one run did and found."""

    operations: int
    requests: int
    failures: list[dict[str, Any]]
    output: str


def fuzz(url: str, key: str, folder: Path, more: Sequence[str], line: str | None = None) -> Found:
    """Run Schemathesis against a server; with `line` every operation that names one names it.

    Raises RuntimeError when it could not run.
    """
    settings = ["[auth.openapi.key]", 'bearer = "${MODELMINT_FUZZ_KEY}"']
    if line is not None:
        settings = ["[parameters]", f'"path.name" = "{line}"', '"path.version" = "1"', *settings]
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    config = folder / "schemathesis.toml"
    config.write_text("\n".join(settings))
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config),
        "run", f"{url}/openapi.json", "--checks", "all", "--exclude-checks", UNSAYABLE,
        "--continue-on-failure", "--warnings", "off", "--no-color",
        "--report", "json", "--report-json-path", str(report), *more,
    ]  # fmt: skip
    environment = os.environ | {"MODELMINT_FUZZ_KEY": key, "NO_PROXY": "127.0.0.1"}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode not in (0, 1) or not report.exists():
        raise RuntimeError(f"schemathesis: {ended.stdout[-3000:]}{ended.stderr[-3000:]}")
    told = json.loads(report.read_text())
    if told["errors"]:
        raise RuntimeError(f"schemathesis: {told['errors']}\n{ended.stdout[-3000:]}")
    tested, generated = told["operations"]["tested"], told["test_cases"]["generated"]
    return Found(tested, generated, told["failures"], ended.stdout)


def main() -> None:
    """Fuzz, publish, and exit with code 1 when anything was found."""
    parser = options(__doc__, turns=1)
    parser.add_argument("--seconds", type=int, default=300, help="of each of the two runs")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    outputs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with modelmint([model(LINE)], folder, "--workers", "2") as server:
            key = server.headers["authorization"].removeprefix("Bearer ")
            more = ["--max-time", str(given.seconds), "--seed", str(given.seed)]
            for names, line in (("made up", None), ("a line there is", LINE)):
                found = fuzz(server.url, key, folder, more, line)
                errors = [one for one in found.failures if one["type"] == "ServerError"]
                rows.append(
                    {
                        "names": names,
                        "operations": found.operations,
                        "requests": found.requests,
                        "server errors": len(errors),
                        "violations": len(found.failures) - len(errors),
                    }
                )
                outputs += [found.output] if found.failures else []
            httpx.get(f"{server.url}/v2/health/live", timeout=5).raise_for_status()
    publish("fuzzing", {"runs": rows}, rows, ["schemathesis", "hypothesis"], given.json)
    if outputs:
        sys.exit("\n".join(outputs))


if __name__ == "__main__":
    main()
