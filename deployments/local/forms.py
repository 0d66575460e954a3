"""The forms of deployments in the Prefect UI: they follow the code that runs.

A deployment keeps the schema its parameters had when it was made, and the folder of the code. To
deploy it again would undo what people edited, so these two alone are replaced.
"""

import sys
from collections.abc import Iterable
from typing import Any

import httpx

from deployments.local.service import ROOT

# As `prefect deploy` writes it where the file names no other step.
PULL = [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}]


def renew(api: httpx.Client, pool: str, entrypoints: Iterable[str]) -> None:
    """Give the pool's deployments of these flows the schema that the flows have here, and ROOT.

    A flow that cannot be imported, such as that of a broken line, keeps its form; it is told on
    standard error. Raises httpx.HTTPStatusError when the server refuses.
    """
    asked: dict[str, Any] = {"work_pools": {"name": {"any_": [pool]}}}
    answer = api.post("/deployments/filter", json=asked).raise_for_status()
    ours = set(entrypoints)
    for found in answer.json():
        if found["entrypoint"] not in ours:
            continue
        try:
            schema = schema_of(found["entrypoint"])
        except Exception as error:  # whatever is in a line's file: all that is due must run
            print(f"the form of {found['name']} is as it was: {error!r}", file=sys.stderr)
            continue
        wanted = {"parameter_openapi_schema": schema, "pull_steps": PULL}
        changed = {name: value for name, value in wanted.items() if found[name] != value}
        if changed:
            api.patch(f"/deployments/{found['id']}", json=changed).raise_for_status()


def schema_of(entrypoint: str) -> dict[str, Any]:
    """The JSON schema of a flow's parameters, as `prefect deploy` makes it."""
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Any = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    return parameter_schema(flow).model_dump(mode="json", exclude_unset=True)
