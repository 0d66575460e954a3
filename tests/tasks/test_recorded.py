"""What is found again of a version that was registered."""

from models.signature import VERSION_FILE
from tasks.promotion import version_folder
from tasks.recorded import with_dataset
from tasks.refs import Champion, Verdict
from tasks.store import store
from tests.tasks import samples
from tests.tasks.conftest import Trained, keep, line_of, recipe_of, registered


def test_the_champion_comes_with_the_rows_it_was_made_from(
    trained: Trained, verdict: Verdict
) -> None:
    name = "remembered"
    line = line_of(name)
    version = registered(name, trained, verdict)
    digest, manifest = version.digest, trained.artifact.manifest
    known = Champion(digest=digest, number=version.number, manifest=manifest)

    gone = with_dataset(line, known)
    assert gone is not None
    assert gone.dataset is None
    assert gone.unknown.startswith("missing stage output: what clean gave")

    keep(recipe_of(name, trained).stages["clean"], trained.dataset)
    found = with_dataset(line, known)
    assert found is not None
    assert (found.dataset, found.unknown) == (trained.dataset, "")
    assert with_dataset(line, None) is None
    # Rows may be told apart by something else now.
    other = line.model_copy(update={"data": samples.TRIPS.model_copy(update={"suffixes": (".x",)})})
    changed = with_dataset(other, known)
    assert changed is not None
    assert changed.dataset is None
    assert changed.unknown == "it was cleaned by other settings than the line has now"


def test_another_recipe_in_its_place_is_not_believed(trained: Trained, verdict: Verdict) -> None:
    line = "forged"
    first, second = (registered(line, trained, verdict, seed) for seed in (0, 1))
    keep(recipe_of(line, trained, 1).stages["clean"], trained.dataset)
    folder, other = (version_folder(line, version.digest) for version in (first, second))
    store().put(folder + VERSION_FILE, store().get(other + VERSION_FILE).content)
    champion = Champion(
        digest=first.digest, number=first.number, manifest=trained.artifact.manifest
    )
    found = with_dataset(line_of(line), champion)
    assert found is not None
    assert found.dataset is None
    assert "it is another version or was altered" in found.unknown
