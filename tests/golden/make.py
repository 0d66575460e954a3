"""Make the golden versions anew: small real versions that every later release must prove.

    python -m tests.golden.make [LINE ...]

Into `tests/golden/current/`, all of them or those of the lines named. When a release changes a
digest rule, or what it computes, on purpose, move what is there to `tests/golden/earlier/` first:
those are replayed by their recorded code from then on. The profile is `portable`, so that they
replay on any x86-64 with AVX2.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CURRENT = FOLDER / "current"
LINES = FOLDER.parent / "lines"
# Line, slice of its example data, settings that keep it small.
VERSIONS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("diabetes", "first", {}, {"epochs": 10}),
    ("digits", "shard-0", {"size": "tiny"}, {"epochs": 3, "augmentation": None}),
    ("prose", "wine", {}, {}),
    ("chimes", "first", {}, {}),
)


def main() -> None:
    """Produce each version in a home of its own and export it with its data."""
    wanted = [version for version in VERSIONS if version[0] in sys.argv[1:] or not sys.argv[1:]]
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"MODELMINT_HOME": home, "MODELMINT_LINES": str(LINES)}
        from deployments.local.stack import PREFECT, SERVER, STORE, stack

        with stack(STORE, PREFECT, SERVER):
            from flows.produce import produce
            from models import catalog
            from models.spec import Budget, Gate
            from tasks import cluster
            from tasks.export import export
            from tasks.land import land

            for name, part, model, training in wanted:
                shutil.rmtree(CURRENT / name, ignore_errors=True)
                line = catalog.find(name)
                land(line, part)
                settings = {**training, "profile": "portable", "device": "cpu"}
                found = produce(
                    name,
                    model=model,
                    training=line.training.model_copy(update=settings),
                    gate=Gate(),
                    budget=Budget(quality_loss=0.9, slowdown=100),
                )
                CURRENT.mkdir(parents=True, exist_ok=True)
                export(name, found.version.number, CURRENT / name, data=True)
            cluster.close()


if __name__ == "__main__":
    main()
