"""Every service of a laptop run, and a first version of the third line, for all flow tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.local.stack import PREFECT, SERVER, STORE, stack
from flows.produce import Production, produce
from models import catalog
from tasks import cluster
from tasks.land import land

LINES = Path(__file__).parent.parent / "lines"
LINE = "diabetes"


@pytest.fixture(scope="package")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Every service of a laptop run, and the folder with the third line."""
    os.environ["MODELMINT_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["MODELMINT_LINES"] = str(LINES)
    with stack(STORE, PREFECT, SERVER) as addresses:
        yield addresses
        cluster.close()
    del os.environ["MODELMINT_HOME"], os.environ["MODELMINT_LINES"]


@pytest.fixture(scope="package")
def first(services: dict[str, str]) -> Production:
    """The first version, from half of the data."""
    del services
    land(catalog.find(LINE))
    return produce(LINE)
