"""The images: what they install is what they import; built twice they are the same files; they run.

The second half needs buildah and a base image: MODELMINT_BASE=python:3.11-slim, with
MODELMINT_BUILD_ARGS for what a build needs here (`make images BUILD_ARGS=...`).
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from deployments.local.ports import unanswered
from models import catalog
from tests.conftest import ROOT

IMPORTED = """
import json, pathlib, sys
import boto3, deployments.serving.__main__, deployments.serving.app, uvicorn, uvloop, httptools
from deployments.kubernetes import follow
from models import catalog
catalog.modules()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_serving_image_installs_what_the_server_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        # Lines of the tests' own import what the image has not.
        env={name: value for name, value in os.environ.items() if name != catalog.SETTING},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = set(json.loads(done.stdout))
    assert not imported & {"torch", "mlflow", "prefect", "distributed", "dask"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = list(project["optional-dependencies"]["serving"])
    installed: set[str] = set()
    while waiting:
        needed = waiting.pop()
        name = normal(re.split(r"[\s;<>=!~\[(]", needed, maxsplit=1)[0])
        if name in installed:
            continue
        installed.add(name)
        wanted = "crypto" if "[crypto]" in needed else None
        for requirement in metadata.requires(name) or []:
            marker = requirement.partition(";")[2]
            if "extra" not in marker or (wanted and f'"{wanted}"' in marker.replace("'", '"')):
                waiting.append(requirement.partition(";")[0])
        installed = {n for n in installed if _is_here(n)}
        waiting = [w for w in waiting if _is_here(re.split(r"[\s;<>=!~\[(]", w, maxsplit=1)[0])]
    providers = metadata.packages_distributions()
    # What is imported where it happens to be, and only there.
    optional = {"modelmint", "setuptools", "brotli", "pyopenssl"}
    for module in imported:
        found = {normal(d) for d in providers.get(module, [])}
        if found and not found & (installed | optional):
            assert module in ("google", "certifi", "sniffio"), f"{module} of {found}"


def _is_here(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_the_dockerfile_copies_every_folder_an_image_needs() -> None:
    dockerfile = (ROOT / "deployments" / "docker" / "Dockerfile").read_text()
    serving = dockerfile.partition("FROM image AS serving")[2].partition("FROM image AS")[0]
    copied = re.findall(r"^COPY (?!--from)(\S+)", serving, re.M)
    assert copied == [
        "models", "deployments/__init__.py", "deployments/serving", "deployments/kubernetes/*.py",
    ]  # fmt: skip
    for pattern in copied:
        assert list(ROOT.glob(pattern))


def build(folder: Path, name: str, target: str = "serving") -> str:
    """The image id of a build of the target that uses no cache."""
    base = os.environ.get("MODELMINT_BASE")
    if shutil.which("buildah") is None or base is None:
        pytest.skip("needs buildah, and MODELMINT_BASE naming an image with Python 3.11")
    more = shlex.split(os.environ.get("MODELMINT_BUILD_ARGS", ""))
    docker, written = ROOT / "deployments" / "docker", folder / name
    command = [
        "buildah", "bud", "--isolation", "chroot", "--format", "docker", "--no-cache",
        "--timestamp", "0", "--build-arg", "SOURCE_DATE_EPOCH=0", "--build-arg", f"BASE={base}",
        "--ignorefile", str(docker / "Dockerfile.dockerignore"), "--file",
        str(docker / "Dockerfile"), "--target", target, "--iidfile", str(written), *more,
        str(ROOT),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return written.read_text().strip()


def layers(image: str) -> list[str]:
    """The digests of an image's content; its configuration also names the build's containers."""
    inspected = json.loads(_buildah("inspect", "--type", "image", image))
    found: list[str] = inspected["OCIv1"]["rootfs"]["diff_ids"]
    return found


@pytest.mark.slow
def test_two_builds_have_the_same_layers_and_serve(tmp_path: Path) -> None:
    image = build(tmp_path, "first")
    assert layers(build(tmp_path, "second")) == layers(image)
    container = _buildah("from", image)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["buildah", "run", "--isolation", "chroot", container, "--"]
    command += ["python", "-m", "deployments.serving", "--repository", "/srv/repository"]
    process = subprocess.Popen([*command, "--port", str(port)])
    try:
        for _ in range(300):
            if unanswered(port, "/v2/health/ready", {200}) is None or process.poll() is not None:
                break
            time.sleep(0.1)
        assert unanswered(port, "/v2/health/ready", {200}) is None
        user = _buildah("run", "--isolation", "chroot", container, "--", "id", "-u")
        assert user == "10001"
    finally:
        process.terminate()
        process.wait(20)
        _buildah("rm", container)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pipeline_image_runs_the_command_line_as_nobody(tmp_path: Path) -> None:
    container = _buildah("from", build(tmp_path, "pipeline", "pipeline"))
    inside = ("run", "--isolation", "chroot", container, "--")
    try:
        assert _buildah(*inside, "id", "-u") == "10001"
        found = json.loads(_buildah(*inside, "python", "-m", "modelmint", "lines", "--json"))
        assert {line["name"] for line in found["lines"]} >= {"digits", "flights"}
        # What its other roles start with.
        for program in ("prefect", "mlflow", "dask"):
            assert _buildah(*inside, program, "--version")
    finally:
        _buildah("rm", container)


def _buildah(*words: str) -> str:
    return subprocess.run(
        ["buildah", *words], capture_output=True, text=True, check=True
    ).stdout.strip()
