import json
import urllib.request
from pathlib import Path

import psutil
import pytest

from deployments.local.prefect_server import environment, prefect_server


@pytest.mark.timeout(300)
def test_serves_its_own_database_whatever_the_user_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    database = f"sqlite+aiosqlite:///{elsewhere}"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", database)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", database)
    with prefect_server(tmp_path).use() as running:
        names = environment(running)
        assert names["PREFECT_HOME"] == str(tmp_path / "prefect")
        with urllib.request.urlopen(f"{names['PREFECT_API_URL']}/health") as answer:
            assert json.loads(answer.read()) is True
        # The UI in the browser asks the address it is told here.
        with urllib.request.urlopen(f"{running.url}/ui-settings") as answer:
            assert json.loads(answer.read())["api_url"] == names["PREFECT_API_URL"]
        process = psutil.Process(running.pid)
        listening = {s.laddr for s in process.net_connections("tcp") if s.status == "LISTEN"}
        assert listening == {("127.0.0.1", running.ports["http"])}
    assert (tmp_path / "prefect/prefect.db").exists()
    assert not elsewhere.exists()
