"""Digests: how fast tables are digested, and how long a 50 MB version takes to verify.

    python -m benchmarks.digests [--json] [--turns 5] [--rows 8000000] [--megabytes 50]

Under a minute. *Table*: two numbers, a flag with nulls and a string a row; bytes are those of its
values as they are digested (8 a number and a string's offset, 1 a flag, the text itself), seconds
the CPU seconds of the process, so that the figure is for one core. *Verify*: `tasks.verify.verify`
of a signed folder on this machine whose model is that many bytes of noise, from page cache;
reading, the signature, and SHA-256 and BLAKE3 of every file. *Command*: `modelmint verify` of it,
from the start of its process to its end.

Goals: at least 0.8 GB/s a core; under 1 s.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl

from benchmarks import measuring
from models.attestation import PROVENANCE, Statement, described, signed
from models.digests import Manifest, bytes_digest, canonical_json
from models.predicates import BUILD_TYPE
from models.signature import (
    MANIFEST_FILE,
    MODEL_FILE,
    PROVENANCE_FILE,
    SAMPLE_FILE,
    SIGNATURE_FILE,
    VERSION_FILE,
)
from models.table_digest import table_digest
from models.trust import KEYS_SETTING
from models.version import Recipe, record

GOAL_SPEED, GOAL_VERIFY = 0.8, 1.0
PACKAGES = ("blake3", "numpy", "polars", "pyarrow", "securesystemslib")


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=5)
    parser.add_argument("--rows", type=int, default=8_000_000, help="rows of the table")
    parser.add_argument("--megabytes", type=int, default=50, help="size of the version's model")
    options = parser.parse_args()
    table = _table(options.rows)
    size = _bytes(table)
    with tempfile.TemporaryDirectory(prefix="modelmint-") as folder:
        os.environ[KEYS_SETTING] = str(Path(folder) / "keys")
        version = _version(Path(folder) / "version", options.megabytes * 10**6)
        found = measuring.in_turns(
            {
                "table": lambda: _digested(table),
                "verify": lambda: _verified(version),
                "command": lambda: _commanded(version),
            },
            options.turns,
        )
    speed, seconds = size / 1e9 / median(found["table"]), median(found["verify"])
    command = median(found["command"])
    figures = {
        "table bytes": size,
        "table GB/s per core": speed,
        "goal GB/s": GOAL_SPEED,
        "version bytes": options.megabytes * 10**6,
        "verify seconds": seconds,
        "verify command seconds": command,
        "goal verify seconds": GOAL_VERIFY,
        "all": found,
    }
    rows = [
        {"what": "table digest", "measured": f"{speed:.2f} GB/s", "goal": f">= {GOAL_SPEED}"},
        {"what": "verify", "measured": f"{seconds:.3f} s", "goal": f"< {GOAL_VERIFY}"},
        {"what": "modelmint verify", "measured": f"{command:.3f} s", "goal": f"< {GOAL_VERIFY}"},
    ]
    measuring.publish("digests", figures, rows, PACKAGES, options.json)


def _table(rows: int) -> pl.DataFrame:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 1 << 40, rows)
    return pl.DataFrame({"number": numbers, "float": random.standard_normal(rows)}).with_columns(
        flag=pl.when(pl.col("number") % 17 > 0).then(pl.col("number") % 2 == 0),
        text=pl.col("number").cast(pl.String),
    )


def _bytes(table: pl.DataFrame) -> int:
    """Size of the values in bytes, without the bitmap of the nulls."""
    flags = table.height - table["flag"].null_count()
    return table.height * 3 * 8 + flags + int(table["text"].str.len_bytes().sum())


def _digested(table: pl.DataFrame) -> float:
    """CPU seconds of one digest."""
    start = time.process_time()
    table_digest(table)
    return time.process_time() - start


def _version(folder: Path, size: int) -> Path:
    """A signed version folder whose model has that many bytes."""
    from tasks.signing import signer

    served = {MODEL_FILE: os.urandom(size), SIGNATURE_FILE: b"{}", SAMPLE_FILE: b"sample"}
    manifest = Manifest.of(served)
    recipe = Recipe(
        line="digests", snapshot=bytes_digest(b""), settings={}, stages={}, artifact=manifest.digest
    )
    files = {
        **served,
        MANIFEST_FILE: canonical_json(manifest.model_dump(mode="json")),
        VERSION_FILE: canonical_json(record(recipe)),
    }
    statement = Statement(
        subject=tuple(described(name, content) for name, content in files.items()),
        predicate_type=PROVENANCE,
        predicate={
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "internalParameters": {
                    "recipe": recipe.model_dump(mode="json"),
                    "located": recipe.snapshot,
                },
                "resolvedDependencies": [],
            },
            "runDetails": {
                "metadata": {"invocationId": "", "finishedOn": ""},
                "modelmint_machine": {"processor": ""},
            },
        },
    )
    folder.mkdir()
    for name, content in {**files, PROVENANCE_FILE: signed(statement, [signer()])}.items():
        (folder / name).write_bytes(content)
    return folder


def _verified(folder: Path) -> float:
    """Seconds of one verification."""
    from tasks.folders import LocalFolder
    from tasks.verify import verify

    start = time.perf_counter()
    verify(LocalFolder(folder))
    return time.perf_counter() - start


def _commanded(folder: Path) -> float:
    """Seconds of the command, its process included."""
    return measuring.run(measuring.python("modelmint", "verify", str(folder))).wall


if __name__ == "__main__":
    main()
