"""KServe's own definition of an InferenceService, cut down to what a manifest of ours says.

    python -m tests.deployments.kubernetes.inference_service CRD.yaml

CRD.yaml is `config/crd/full/serving.kserve.io_inferenceservices.yaml` of a release of
github.com/kserve/kserve (Apache-2.0), 2 MB long. Whatever the manifest says stays in the schema if
KServe knows it; what is not in it is unknown to KServe, whose API server would drop it, and so is
refused here.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

MANIFEST = ROOT / "deployments" / "kubernetes" / "overlays" / "kserve" / "serving.yaml"
SCHEMA = Path(__file__).with_suffix(".json")
KEPT = ("type", "required", "enum", "minimum", "maximum", "pattern", "anyOf", "format")
KEPT += ("x-kubernetes-int-or-string",)


def cut(schema: dict[str, Any], said: list[Any]) -> dict[str, Any]:
    """The schema with the properties that any of the values has."""
    found = {name: value for name, value in schema.items() if name in KEPT}
    if "properties" in schema:
        values = [value for value in said if isinstance(value, dict)]
        names = {name for value in values for name in value} & set(schema["properties"])
        found["properties"] = {
            name: cut(schema["properties"][name], [v[name] for v in values if name in v])
            for name in sorted(names)
        }
        found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = schema["additionalProperties"]
    if "items" in schema:
        found["items"] = cut(schema["items"], [i for v in said for i in v])
    return found


def main(definition: Path) -> None:
    """Write the schema."""
    versions = yaml.safe_load(definition.read_text())["spec"]["versions"]
    [whole] = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1beta1"]
    # Kinds and names are for every object alike.
    whole["properties"] = {"spec": whole["properties"]["spec"]}
    said = yaml.safe_load(MANIFEST.read_text())
    SCHEMA.write_text(json.dumps(cut(whole, [said]), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
