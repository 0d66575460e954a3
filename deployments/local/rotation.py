"""Logs stay small: what has grown long becomes `log.1`, and `log` begins anew.

    python -m deployments.local.rotation HOME

Services write to their log themselves, since they survive their manager; so a log is copied and
then cut where it is, as logrotate's `copytruncate` does. A line written just between the two is
lost.
"""

import os
import shutil
import sys
import time
from pathlib import Path

LONGEST = 16 << 20
EVERY = 5.0
"""Seconds between two looks."""


def rotate(log: Path, longest: int = LONGEST) -> None:
    """Begin the log anew if it is longer than that many bytes; raises OSError."""
    if not log.exists() or log.stat().st_size <= longest:
        return
    partial = log.with_suffix(".partial")
    try:
        with log.open("rb") as old, partial.open("wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            # Whoever writes there appends: the next line is the first.
            os.truncate(log, 0)
        partial.replace(log.with_suffix(".1"))
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    """Look after the logs of a home's services until stopped."""
    home = Path(sys.argv[1])
    while True:
        for log in home.glob("*/log"):
            try:
                rotate(log)
            except OSError as error:
                # On a full disk, say: the log is kept, and tried again.
                print(f"{log} is not begun anew: {error}", file=sys.stderr, flush=True)
        time.sleep(EVERY)


if __name__ == "__main__":
    main()
