"""KServe as the alternative target: what it is told is valid for it, and is what the base says."""

import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deployments.kubernetes.inference_service import MANIFEST, SCHEMA
from tests.deployments.kubernetes.test_manifests import VERSION, documents, name_of

SERVICE = yaml.safe_load(MANIFEST.read_text())
OVERLAY = yaml.safe_load((MANIFEST.parent / "kustomization.yaml").read_text())
# What KServe adds to a pod's own fields.
SCALING = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")
# By what KServe labels the pods it makes.
LABELS = {"serving.kserve.io/inferenceservice": SERVICE["metadata"]["name"]}


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SCHEMA.read_text())["properties"]["spec"]
    return found


def test_kserve_takes_it() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    jsonschema.validate(SERVICE["spec"], schema())


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ((), {"predictors": {}}),
        (("predictor",), {"scaleMetric": "patience"}),
        (("predictor",), {"minReplicas": "two"}),
        (("predictor", "containers", 0), {"ports": [{"name": "http"}]}),
        (("predictor", "containers", 0, "readinessProbe"), {"httpget": {}}),
    ],
)
def test_the_definition_refuses_what_kserve_does(
    where: tuple[str | int, ...], change: dict[str, Any]
) -> None:
    broken = json.loads(json.dumps(SERVICE["spec"]))
    part = broken
    for step in where:
        part = part[step]
    part |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema())


def pod() -> dict[str, Any]:
    return {n: v for n, v in SERVICE["spec"]["predictor"].items() if n not in SCALING}


def test_its_pod_is_the_base_s() -> None:
    [base] = [d for d in documents() if name_of(d) == "Deployment-serving"]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod()}
    kubernetes_validate.validate(whole, VERSION, strict=True)
    expected = json.loads(json.dumps(base["spec"]["template"]["spec"]))
    # The container KServe asks for its state goes by this name.
    assert expected["containers"][0]["name"] == "serving"
    expected["containers"][0]["name"] = "kserve-container"
    assert pod() == expected


def test_what_it_replaces_is_deleted_and_what_selects_it_is_told() -> None:
    patches = {
        f"{p['target']['kind']}-{p['target']['name']}": yaml.safe_load(p["patch"])
        for p in OVERLAY["patches"]
    }
    base = {name_of(document): document for document in documents()}
    # Everything of the base that concerns the pods it replaces.
    replaced = {"app": "serving"}
    concerned = {
        name
        for name, d in base.items()
        if d["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment")
        and replaced in _selectors(d)
    }
    assert set(patches) == concerned | {"HorizontalPodAutoscaler-serving"}
    for name, patch in patches.items():
        if isinstance(patch, dict):
            kept = {n: base[name][n] for n in ("apiVersion", "kind")}
            assert patch == {"$patch": "delete", **kept, "metadata": {"name": "serving"}}
            continue
        [change] = patch
        found: Any = base[name]
        for step in change["path"].strip("/").split("/"):
            found = found[step]
        assert found == replaced
        assert change["value"] == LABELS


def _selectors(document: dict[str, Any]) -> list[dict[str, str]]:
    spec = document["spec"]
    found = [spec.get("selector", {}), spec.get("podSelector", {})]
    return [each.get("matchLabels", each) for each in found]
