"""Every service of a laptop run, and a first version of the third line, for all flow tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.local.stack import SERVER, stack
from flows.produce import Production, produce
from models import catalog
from tasks import cluster
from tasks.land import land
from tests.conftest import environment, new_bucket

LINES = Path(__file__).parent.parent / "lines"
LINE = "diabetes"


@pytest.fixture(scope="package")
def services(
    store_service: str, prefect_service: str, dask_service: None
) -> Iterator[dict[str, str]]:
    """Every service of a laptop run, and the folder with the third line."""
    del store_service, prefect_service, dask_service
    # Workers and the model server read these when they start.
    cluster.close()
    with environment(MODELMINT_LINES=str(LINES)), new_bucket(), stack(SERVER) as addresses:
        yield addresses
        cluster.close()


@pytest.fixture(scope="package")
def first(services: dict[str, str]) -> Production:
    """The first version, from half of the data."""
    del services
    land(catalog.find(LINE))
    return produce(LINE)
