from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments.local.processes import MARK


def marked(folder: Path) -> list[psutil.Process]:
    """The living processes of every service whose state is below `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_left_running(tmp_path: Path) -> Iterator[None]:
    yield
    left = marked(tmp_path)
    for process in left:
        process.kill()
    assert left == []
