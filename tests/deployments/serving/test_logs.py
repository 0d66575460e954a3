"""What is logged of a failure: where it happened, and no word that a caller may have sent."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from deployments.serving import logs

SECRET = "a name and an address"


def failure() -> logging.LogRecord:
    try:
        try:
            int(SECRET)
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError as error:
        told = (KeyError, error, error.__traceback__)
        return logging.LogRecord("x", logging.ERROR, "x.py", 1, "request %s failed", ("r1",), told)


@pytest.fixture
def level() -> Any:
    root = logging.getLogger()
    before = root.level
    yield root.setLevel
    root.setLevel(before)


def test_an_error_is_places_and_types(level: Any) -> None:
    level(logging.INFO)
    told = json.loads(logs._Json().format(failure()))
    assert {"at", "level", "logger", "message", "error"} == set(told)
    assert (told["level"], told["message"]) == ("error", "request r1 failed")
    for text in (told["error"], logs._Text("%(message)s").format(failure())):
        assert SECRET not in text
        assert Path(__file__).name in text
        assert "KeyError" in text
        assert "ValueError" in text


def test_debugging_tells_the_words_too(level: Any) -> None:
    level(logging.DEBUG)
    assert SECRET in json.loads(logs._Json().format(failure()))["error"]


def test_a_server_logs_json(start: Any, tmp_path: Path) -> None:
    server = start(tmp_path / "repository", "--log-format", "json", "--log-level", "info")
    server.stop()
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert any(line["logger"].startswith("uvicorn") for line in lines)
