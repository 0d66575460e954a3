"""Have the model server beside this process serve the champions the bucket names.

    python -m deployments.kubernetes.follow --server http://127.0.0.1:8080 --every 10

Replicas come and go, and a deployment reaches one server; the promotion records are the truth, so
every replica follows them. The server itself proves each version before it serves it, and asks for
the key MODELMINT_API_KEY holds.
"""

import argparse
import json
import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_log = logging.getLogger("modelmint.follow")


def champions() -> dict[str, dict[str, Any]]:
    """The last promotion (number, digest) of every line; raises botocore's errors."""
    import boto3

    bucket = os.environ.get("MODELMINT_BUCKET", "modelmint")
    client = boto3.client("s3")
    found: dict[str, dict[str, Any]] = {}
    for page in client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix="promotions/"
    ):
        for item in page.get("Contents", []):
            content = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            history = json.loads(content)["history"]
            if history:
                line, last = Path(item["Key"]).stem, history[-1]
                source = f"s3://{bucket}/versions/{line}/{last['digest']}/"
                found[line] = {
                    "version": str(last["number"]), "digest": last["digest"], "source": source,
                    "entry": last.get("id", "of an earlier release"),
                }  # fmt: skip
    return found


def follow(server: str) -> list[str]:
    """Load and promote what is champion and not yet the default; the lines that changed.

    Raises OSError when the server refuses one or does not answer; those before it are served.
    """
    lines = _ask(f"{server}/")["lines"]
    changed = []
    for line, wanted in sorted(champions().items()):
        if lines.get(line, {}).get("default") != wanted["version"]:
            # Refused while the server holds a rollback of its own that is not recorded yet.
            entry = wanted.pop("entry")
            _ask(f"{server}/v2/repository/models/{line}/load", {"parameters": wanted})
            moved = {"version": wanted["version"], "recorded": entry}
            _ask(f"{server}/v1/lines/{line}/promote", moved)
            changed.append(line)
            _log.warning("%s version %s is served", line, wanted["version"])
    return changed


def _ask(url: str, body: dict[str, Any] | None = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if key := os.environ.get("MODELMINT_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, content, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise OSError(f"{url}: {error.code} {error.read()[:300]!r}") from None


def main() -> None:
    """Follow until stopped; `--ready` is written once every champion is served."""
    parser = argparse.ArgumentParser(description="Serve the champions the bucket names.")
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="the model server")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    parser.add_argument("--ready", type=Path, help="file to write once every champion is served")
    options = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    while True:
        try:
            follow(options.server)
            if options.ready:
                options.ready.touch()
        except Exception as error:  # whatever the store or the server said, look again
            _log.error("the champions are not all served: %s", error)
        time.sleep(options.every)


if __name__ == "__main__":
    main()
