"""Start-up: how long `modelmint --help` takes, and a cold model server until its first answer.

    python -m benchmarks.startup [--json] [--turns 10]

About a minute and a half on two cores, most of it to produce the version that is served. Expect
about 0.2 s for help and about 1 s for the server. "Cold" is a new process that restores one
version from its folder, proves every digest and answers; the files are in the page cache.
Goals: help under 0.3 s, first answer under 2 s.
"""

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import safetensors.numpy

from benchmarks import measuring
from deployments.local.model_server import FIRST_KEY
from deployments.local.ports import HOST, free_ports
from deployments.serving.folder import version_folder
from models.signature import SAMPLE_FILE, SIGNATURE_FILE, Signature
from models.trust import KEYS_SETTING

LINE = "digits"
GOALS = {"help": 0.3, "first answer": 2.0}
GIVE_UP = 60.0


def main() -> None:
    """Measure, print, write the result."""
    options = measuring.options(__doc__, turns=10).parse_args()
    program = str(Path(sys.executable).parent / "modelmint")
    with measuring.temporary_home() as home:
        measuring.run([program, "land", LINE])
        settings = ["training.epochs=1", "model.size=tiny", "gate.floors={}"]
        changes = [word for setting in settings for word in ("--set", setting)]
        produced = measuring.run([program, "run", LINE, *changes, "--json"]).answer
        repository = home / "serving"
        body = request_body(version_folder(repository, LINE, str(produced["version"])))
        found = measuring.in_turns(
            {
                "help": lambda: measuring.run([program, "--help"]).wall,
                "first answer": lambda: _first_answer(repository, body),
            },
            options.turns,
        )
    figures = {
        name: {"seconds": median(seconds), "all": seconds, "goal": GOALS[name]}
        for name, seconds in found.items()
    }
    rows = [
        {
            "start of": name,
            "median s": f"{median(seconds):.3f}",
            "slowest s": f"{max(seconds):.3f}",
            "goal s": GOALS[name],
        }
        for name, seconds in found.items()
    ]
    packages = ("typer", "onnxruntime", "starlette", "uvicorn")
    measuring.publish("startup", figures, rows, packages, options.json)


def request_body(folder: Path) -> bytes:
    """An infer request with one image of the version's own sample."""
    signature = Signature.model_validate_json((folder / SIGNATURE_FILE).read_bytes())
    sample = safetensors.numpy.load((folder / SAMPLE_FILE).read_bytes())
    inputs = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": [1, *sample[spec.name].shape[1:]],
            "data": sample[spec.name][0].ravel().tolist(),
        }
        for spec in signature.features.inputs
    ]
    return json.dumps({"inputs": inputs}).encode()


def _first_answer(repository: Path, body: bytes) -> float:
    """Seconds from starting a server to its first whole answer."""
    port = free_ports(("http",), paired=False)["http"]
    address = ["--host", HOST, "--port", str(port), "--repository", str(repository)]
    start = time.perf_counter()
    command = measuring.python("deployments.serving", *address)
    keys = {KEYS_SETTING: str(repository.parent / "keys")}
    server = subprocess.Popen(command, cwd=measuring.ROOT, env=os.environ | keys)
    try:
        while not _answered(port, body, repository):
            if server.poll() is not None or time.perf_counter() - start > GIVE_UP:
                raise RuntimeError(f"the model server does not answer (exit {server.returncode})")
            time.sleep(0.005)
        return time.perf_counter() - start
    finally:
        server.terminate()
        server.wait()


def _answered(port: int, body: bytes, repository: Path) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=GIVE_UP)
    try:
        connection.connect()
        key = (repository.parent / FIRST_KEY).read_text()
        headers = {"authorization": f"Bearer {key}"}
        connection.request("POST", f"/v2/models/{LINE}/infer", body, headers)
        answer = connection.getresponse()
        content = answer.read()
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"the model server says {answer.status}: {content.decode()}")
    return True


if __name__ == "__main__":
    main()
