"""Where versions are, and how a server finds those of an earlier release."""

from pathlib import Path
from typing import Any

from deployments.serving.folder import TRITON_FILE, adopt, line_folder, version_folder
from tests.deployments.serving.test_main import BODY, INFER, NO_STORE


def laid(folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text(content)


def listed(root: Path) -> dict[str, str]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_text() for path in paths}


def test_a_repository_of_an_earlier_release_answers_after_a_restart_without_the_store(
    start: Any, table: Any, image: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    server = start(root)
    # A line may have the name of the folder that all lines are in now.
    for version in (table(), table(line="models"), image()):
        version.place(root, "1")
        assert server.load(version, "1").status == 200
        assert server.promote(version.line, "1").status == 200
    before = server.ask("GET", "/").json
    assert server.stop() == 0
    now = line_folder(root, "models").parent.rename(tmp_path / "now")
    for line in now.iterdir():
        line.rename(root / line.name)

    for _ in range(2):
        server = start(root, environment=NO_STORE)
        assert server.ask("GET", "/").json == before
        assert server.ask("POST", INFER, BODY).status == 200
        assert server.ask("GET", "/v2/health/ready").json["failed_versions"] == 0
        assert server.stop() == 0
    assert (line_folder(root, "air-time") / TRITON_FILE).exists()
    assert {path.name for path in root.iterdir() if path.name[0] != "."} == {"models", "state.json"}


def test_only_what_the_state_names_is_taken_and_nothing_is_replaced(tmp_path: Path) -> None:
    for number in "12":
        laid(tmp_path / "digits" / number, "before")
    laid(version_folder(tmp_path, "digits", "2"), "now")
    laid(tmp_path / "digits" / ".incoming-3", "half")
    laid(tmp_path / "else" / "1", "not ours")
    for _ in range(2):
        adopt(tmp_path, ["digits", "absent"])
        assert listed(tmp_path) == {
            "models/digits/1/model.onnx": "before",
            "models/digits/2/model.onnx": "now",
            "digits/2/model.onnx": "before",
            "digits/.incoming-3/model.onnx": "half",
            "else/1/model.onnx": "not ours",
        }


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    laid(tmp_path / "elsewhere" / "1", "not ours")
    root = tmp_path / "repository"
    root.mkdir()
    (root / "digits").symlink_to(tmp_path / "elsewhere")
    adopt(root, ["digits"])
    assert listed(tmp_path / "elsewhere") == {"1/model.onnx": "not ours"}
