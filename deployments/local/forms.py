"""The forms of deployments in the Prefect UI: they follow the code that runs.

A deployment keeps the schema its parameters had when it was made. To deploy it again would undo
what people edited, so the schema alone is replaced.
"""

import sys
from collections.abc import Iterable
from typing import Any

import httpx


def renew(api: httpx.Client, pool: str, entrypoints: Iterable[str]) -> None:
    """Give the pool's deployments of these flows the schema that the flows have here.

    A flow that cannot be imported, such as that of a broken line, keeps its form; it is told on
    standard error. Raises httpx.HTTPStatusError when the server refuses.
    """
    wanted: dict[str, Any] = {"work_pools": {"name": {"any_": [pool]}}}
    answer = api.post("/deployments/filter", json=wanted).raise_for_status()
    ours = set(entrypoints)
    for found in answer.json():
        if found["entrypoint"] not in ours:
            continue
        try:
            schema = schema_of(found["entrypoint"])
        except Exception as error:  # whatever is in a line's file: all that is due must run
            print(f"the form of {found['name']} is as it was: {error!r}", file=sys.stderr)
            continue
        if schema != found["parameter_openapi_schema"]:
            changed = {"parameter_openapi_schema": schema}
            api.patch(f"/deployments/{found['id']}", json=changed).raise_for_status()


def schema_of(entrypoint: str) -> dict[str, Any]:
    """The JSON schema of a flow's parameters, as `prefect deploy` makes it."""
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Any = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    return parameter_schema(flow).model_dump(mode="json", exclude_unset=True)
