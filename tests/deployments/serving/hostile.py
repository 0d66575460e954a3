"""Features whose decoder does what a crafted file can make one do."""

import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path

import polars as pl

from models.tables import TableFeatures

RELEASE = Path(os.environ.get("HOSTILE_RELEASE", "/nonexistent"))


class HostileFeatures(TableFeatures):
    """Reads JSON as tables do, unless the payload says what to do instead."""

    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        match payload:
            case b"crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"memory":
                bytearray(10**11)
            case b"abort":
                # As libraries in C and Rust do when they get no memory.
                os.abort()
            case b"spin":
                while True:
                    pass
            case _ if b"wait" in payload:
                RELEASE.with_suffix(".begun").touch()
                while not RELEASE.exists():
                    time.sleep(0.01)
            case b"sleep":
                time.sleep(600)
            case b"surprise":
                raise LookupError("the secret of the payload")
            case b"lie":
                # To whoever listens, what a decoder taken over might say.
                for number in (int(path.name) for path in Path("/proc/self/fd").iterdir()):
                    with suppress(OSError):
                        if stat.S_ISSOCK(os.fstat(number).st_mode):
                            os.write(number, b"\0" * 64)
        return super().read(payload, media_type)
