"""Every manifest is valid for the Kubernetes API, strict about security, and fits the code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deployments.serving.__main__ import _parser
from deployments.serving.app import create
from tests.conftest import ROOT

FOLDER = ROOT / "deployments" / "kubernetes"
VERSION = "1.33"
CUSTOM = {"DaskCluster", "Kustomization"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def documents() -> list[dict[str, Any]]:
    """Every document of the base that is for the API server."""
    files = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["resources"]
    return [
        document
        for name in files
        for document in yaml.safe_load_all((FOLDER / "base" / name).read_text())
    ]


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


def pods() -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """Name, labels and specification of every pod, also those the Dask operator makes."""
    for document in documents():
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            yield document["metadata"]["name"], template["metadata"]["labels"], template["spec"]
        elif document["kind"] == "DaskCluster":
            labels = {"dask.org/cluster-name": document["metadata"]["name"]}
            for part in ("scheduler", "worker"):
                yield f"dask-{part}", labels, document["spec"][part]["spec"]


def containers() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{name}-{container['name']}", container)
        for name, _, spec in pods()
        for container in [*spec.get("initContainers", []), *spec["containers"]]
    ]


BY_NAME = {"ids": lambda value: value if isinstance(value, str) else ""}


def test_the_base_names_every_file() -> None:
    listed = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(
        p.name for p in (FOLDER / "base").iterdir()
    )


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_the_api_takes_it(document: dict[str, Any]) -> None:
    if document["kind"] not in CUSTOM:
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize(("name", "labels", "spec"), list(pods()), **BY_NAME)
def test_the_api_takes_every_pod(name: str, labels: dict[str, str], spec: dict[str, Any]) -> None:
    """Also of custom resources, whose pods are plain ones."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }
    kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize(("name", "labels", "spec"), list(pods()), **BY_NAME)
def test_pods_are_restricted(name: str, labels: dict[str, str], spec: dict[str, Any]) -> None:
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = re.search(r"^USER (\d+):(\d+)$", dockerfile(), re.M)
    assert user is not None
    found = spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]
    assert found == (int(user[1]), int(user[2]))


@pytest.mark.parametrize(("name", "container"), containers(), **BY_NAME)
def test_containers_are_restricted(name: str, container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    # Whatever libraries write goes below /tmp, and the root is read-only.
    assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])


@pytest.mark.parametrize(("name", "labels", "spec"), list(pods()), **BY_NAME)
def test_mounts_are_volumes(name: str, labels: dict[str, str], spec: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounted = {
        mount["name"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]
        for mount in container["volumeMounts"]
    }
    assert mounted == volumes


def dockerfile() -> str:
    return (ROOT / "deployments" / "docker" / "Dockerfile").read_text()


def test_images_are_targets_of_the_dockerfile() -> None:
    targets = set(re.findall(r"^FROM image AS (\w+)$", dockerfile(), re.M))
    assert {container["image"] for _, container in containers()} == {
        f"modelmint/{target}" for target in targets
    }
    overlay = yaml.safe_load((FOLDER / "overlays" / "example" / "kustomization.yaml").read_text())
    assert {image["name"] for image in overlay["images"]} == {f"modelmint/{t}" for t in targets}


def test_decoders_at_their_limit_leave_the_server_its_memory() -> None:
    """Over a pod's limit the kernel ends the whole container, not the decoder at fault."""
    servers = [c for _, c in containers() if "--decode-mb" in c.get("args", [])]
    assert len(servers) == 2
    for container in servers:
        found = _parser().parse_args([*container["args"], "--repository", "models"])
        gibibytes = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
        assert found.decoders * found.decode_mb * 1e6 <= (gibibytes - 0.75) * 2**30


def test_no_secret_is_written_down() -> None:
    for document in documents():
        assert document["kind"] != "Secret"
    for name, container in containers():
        for variable in container.get("env", []):
            if re.search("KEY|SECRET|PASSWORD|DATABASE|URL", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], f"{name}: {variable['name']}"


def test_variables_are_ones_the_code_or_prefect_reads() -> None:
    from prefect.settings import get_current_settings

    prefect = set(get_current_settings().to_environment_variables(exclude_unset=False))
    code = "".join(
        path.read_text()
        for folder in ("models", "tasks", "flows", "deployments")
        for path in (ROOT / folder).rglob("*.py")
    )
    # What libraries read by themselves, and what a command line here expands.
    known = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "DATABASE"}
    for name in variables():
        own = name in code or name in prefect or name in known
        assert own or name.startswith(("DASK_DISTRIBUTED__COMM__", "PREFECT_REDIS_MESSAGING_")), (
            name
        )


def test_dask_reads_the_tls_settings() -> None:
    import dask
    from distributed.security import Security

    settings = {d["metadata"]["name"]: d["data"] for d in documents() if d["kind"] == "ConfigMap"}
    tls = settings["dask-tls"]
    comm = dask.config.merge(
        dask.config.get("distributed.comm"), dask.config.collect_env(tls)["distributed"]["comm"]
    )
    with dask.config.set({"distributed.comm": comm}):
        found = Security()
    assert found.require_encryption is True
    assert found.tls_ca_file == tls["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"]
    for role in ("scheduler", "worker", "client"):
        assert getattr(found, f"tls_{role}_key") == "/etc/modelmint/tls/tls.key"
        assert getattr(found, f"tls_{role}_cert") == "/etc/modelmint/tls/tls.crt"


def variables() -> set[str]:
    """The name of every environment variable that is set anywhere."""
    names = {v["name"] for _, container in containers() for v in container.get("env", [])}
    for document in documents():
        if document["kind"] == "ConfigMap":
            names |= set(document["data"])
    return names


def test_addresses_are_services_with_that_port() -> None:
    ports = {
        d["metadata"]["name"]: {p["port"] for p in d["spec"]["ports"]}
        for d in documents()
        if d["kind"] == "Service"
    }
    for document in documents():
        if document["kind"] == "DaskCluster":
            exposed = document["spec"]["scheduler"]["service"]["ports"]
            ports[f"{document['metadata']['name']}-scheduler"] = {p["port"] for p in exposed}
    [settings] = [d["data"] for d in documents() if name_of(d) == "ConfigMap-modelmint"]
    found = {m.groups() for v in settings.values() if (m := re.match(r"\w+://([\w-]+):(\d+)", v))}
    assert len(found) == 4
    for host, port in found:
        assert int(port) in ports[host]


def test_services_and_policies_select_pods() -> None:
    labelled = [labels for _, labels, _ in pods()]
    for document in documents():
        if document["kind"] == "Service":
            wanted = document["spec"]["selector"]
        elif document["kind"] == "NetworkPolicy":
            wanted = document["spec"]["podSelector"].get("matchLabels", {})
        else:
            continue
        assert any(wanted.items() <= labels.items() for labels in labelled), name_of(document)


def test_probes_ask_paths_the_model_server_has(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from deployments.serving.access import Access
    from deployments.serving.recorder import Recorder
    from deployments.serving.repository import Repository
    from deployments.serving.traffic import Traffic
    from models.trust import Trust

    repository = Repository(tmp_path / "repository", Trust(tmp_path))
    asked = {
        container[kind]["httpGet"]["path"]
        for _, container in containers()
        if container["image"] == "modelmint/serving"
        for kind in PROBES
        if "httpGet" in container.get(kind, {})
    }
    assert asked == {"/v2/health/live", "/v2/health/ready"}
    # A probe has no key to show.
    access = Access(tmp_path / "private")
    traffic = Traffic(repository, access.journal, tmp_path / "private" / "trials")
    client = TestClient(create(repository, access, Recorder(repository), traffic))
    assert {client.get(path).status_code for path in asked} == {200}
    repository.close()


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("worker", "prefect", 4200),
        ("watcher", "prefect", 4200),
        ("worker", "mlflow", 5000),
        ("worker", "candidate", 8080),
        ("worker", "dask-scheduler", 8786),
        ("dask-worker", "dask-scheduler", 8786),
        ("dask-scheduler", "dask-worker", 8788),
        ("dask-worker", "dask-worker", 8788),
        # Ranks of a training find each other on ports the kernel gave them.
        ("dask-worker", "dask-worker", 32768),
        ("dask-worker", "dask-worker", 60999),
    ],
)
def test_what_is_needed_may_speak(source: str, target: str, port: int) -> None:
    assert allowed("egress", source, target, port)
    assert allowed("ingress", target, source, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("serving", "prefect", 4200),
        ("watcher", "dask-scheduler", 8786),
        ("serving", "dask-scheduler", 8786),
        ("serving", "candidate", 8080),
        ("mlflow", "dask-scheduler", 8786),
        ("dask-worker", "candidate", 8080),
    ],
)
def test_what_is_not_needed_may_not(source: str, target: str, port: int) -> None:
    assert not (
        allowed("egress", source, target, port) and allowed("ingress", target, source, port)
    )


def allowed(direction: str, subject: str, peer: str, port: int) -> bool:
    """Whether the policies of `subject` let it send to, or receive from, `peer` on the port."""
    labels = {name: found for name, found, _ in pods()}
    for document in documents():
        if document["kind"] != "NetworkPolicy":
            continue
        spec = document["spec"]
        chosen = spec["podSelector"].get("matchLabels", {})
        if not chosen.items() <= labels[subject].items():
            continue
        for rule in spec.get(direction, []):
            peers = rule["to" if direction == "egress" else "from"]
            selectors = [p["podSelector"]["matchLabels"] for p in peers if "podSelector" in p]
            if any(p["port"] <= port <= p.get("endPort", p["port"]) for p in rule["ports"]) and any(
                selector.items() <= labels[peer].items() for selector in selectors
            ):
                return True
    return False


def test_whatever_is_not_listed_is_denied() -> None:
    [deny] = [d for d in documents() if name_of(d) == "NetworkPolicy-default-deny"]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_overlay_patches_what_is_there() -> None:
    overlay = yaml.safe_load((FOLDER / "overlays" / "example" / "kustomization.yaml").read_text())
    by_name = {name_of(document): document for document in documents()}
    for patch in overlay["patches"]:
        found: Any = by_name[f"{patch['target']['kind']}-{patch['target']['name']}"]
        for change in yaml.safe_load(patch["patch"]):
            for part in change["path"].strip("/").split("/"):
                found = found[part]
            assert type(found) is type(change["value"])
