"""The real services tests run against; each starts once a session, when the first test asks.

`store_service`    SeaweedFS; AWS_* and MLFLOW_TRACKING_URI (SQLite) name it
`prefect_service`  the Prefect server, beside the store
`dask_service`     Dask on this machine, closed at the end
`bucket`           a bucket of the test's own, named by MODELMINT_BUCKET
`workers`          Dask, with workers that use the test's bucket
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from deployments.local.stack import HOME_SETTING, PREFECT, STORE, stack
from tasks.store import BUCKET_SETTING

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
LONGEST = (TESTS / "flows", TESTS / "test_modelmint.py", TESTS / "deployments", TESTS / "tasks")
"""What starts first, so that no process ends alone."""
_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first; pytest-xdist hands them to its processes one by one."""
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    found = (n for n, first in enumerate(LONGEST) if first in (path, *path.parents))
    return next(found, len(LONGEST))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """The variables set in this process, and back again at the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def new_bucket() -> Iterator[str]:
    """An empty bucket that MODELMINT_BUCKET names."""
    from tasks.store import store

    name = f"test-{os.getpid()}-{next(_numbers)}"
    with environment(**{BUCKET_SETTING: name}):
        store().create_bucket()
        yield name


def tell_workers(name: str) -> None:
    """Have the Dask workers use the bucket: their environment is a copy from when they started."""
    from tasks import cluster

    def use(setting: str, bucket: str) -> None:
        import os

        os.environ[setting] = bucket

    cluster.client().run(use, BUCKET_SETTING, name)


@pytest.fixture(scope="session")
def store_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The object store's address; child processes find the code of this checkout."""
    home = tmp_path_factory.mktemp("home")
    settings = {HOME_SETTING: str(home), "PYTHONPATH": str(ROOT)}
    with environment(**settings), stack(STORE) as addresses:
        yield addresses[STORE]


@pytest.fixture(scope="session")
def prefect_service(store_service: str) -> Iterator[str]:
    """The Prefect server's address; needs no Prefect imported before it."""
    del store_service
    with stack(PREFECT) as addresses:
        from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

        # Prefect read its settings when it was imported, maybe long before the server started.
        settings = {
            PREFECT_API_URL: os.environ["PREFECT_API_URL"],
            PREFECT_HOME: os.environ["PREFECT_HOME"],
        }
        with temporary_settings(settings):
            yield addresses[PREFECT]


@pytest.fixture(scope="session")
def dask_service(store_service: str) -> Iterator[None]:
    """The Dask cluster of `tasks.cluster`."""
    from tasks import cluster

    del store_service
    yield
    cluster.close()


@pytest.fixture
def bucket(store_service: str) -> Iterator[str]:
    """The name of an empty bucket that `tasks.store.store()` gives in this process."""
    del store_service
    with new_bucket() as name:
        yield name


@pytest.fixture
def workers(dask_service: None, bucket: str) -> Callable[[str], None]:
    """Dask workers that use this test's bucket; call it with another bucket's name to switch."""
    del dask_service
    tell_workers(bucket)
    return tell_workers
