"""Batch scoring on real Dask workers: what is answered, what is refused, what is written once."""

import io
import struct
import subprocess
import sys
import tarfile
import time

import numpy as np
import orjson
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.digests import IntegrityError, Manifest
from models.images import Images, ImageSize
from models.objectives import Regression
from models.signature import MODEL_FILE, SIGNATURE_FILE
from models.splits import ByHash
from tasks.promotion import promote, version_folder
from tasks.recorded import ChangedCodeError
from tasks.refs import Version
from tasks.score import Scored, score
from tasks.scoring import Scoring, scoring
from tasks.served import NoChampionError, Served, served
from tasks.snapshot import EmptyPrefixError, list_prefix
from tasks.store import store
from tests.deployments.serving.versions import LABELS, image_version
from tests.tasks import samples
from tests.tasks.conftest import Made
from tests.tasks.scored import LINE, objects, read, source, unlabelled


def run(how: Scoring, prefix: str) -> Scored:
    return score.bare(how, prefix, list_prefix(prefix))


def test_every_row_is_answered_as_the_model_answers_it(how: Scoring, prefix: str) -> None:
    for part in range(3):
        numbers = range(part * 100, part * 100 + 100)
        store().put(f"{prefix}{part}.csv", unlabelled(numbers))
    found = run(how, prefix)
    assert (found.objects, found.rows, found.scored) == (3, 300, 300)
    answers = pl.concat(read(one) for one in objects(found).values())
    assert answers.get_column("trip").to_list() == list(range(300))
    # The other way to an answer: records of features, as they are sent to the model server.
    trips = [samples.trip(number).split(",") for number in range(300)]
    records = [{"zone": z, "km": float(km), "toll": float(z == "north")} for _, z, km, _ in trips]
    features = how.served.signature().features
    tensors = features.encode(features.read(orjson.dumps(records), "application/json"))
    [expected] = how.served.session().run(None, tensors)
    assert answers.get_column("minutes").to_numpy() == pytest.approx(expected.reshape(-1), rel=1e-5)


def test_rows_in_are_rows_out_and_rows_refused_with_their_reason(how: Scoring, prefix: str) -> None:
    others = ("11,north,far", "12,north,5000", "13,north", ",south,3")
    store().put(f"{prefix}a.csv", unlabelled(range(10), *others))
    store().put(f"{prefix}broken.parquet", b"PAR1")
    store().put(f"{prefix}notes.txt", b"hello")
    found = run(how, prefix)
    assert (found.objects, found.rows, found.scored) == (3, 14, 10)
    table = read(objects(found)[f"{prefix}a.csv"])
    assert table.get_column("row").to_list() == list(range(14))
    assert table.columns == ["row", "trip", "minutes", "refused_field", "refused_reason"]
    refused = table.filter(pl.col("minutes").is_null())
    assert refused.drop("minutes").rows() == [
        (10, None, "km", "'far' is no number"),
        (11, 12, "km", "not within 0 to 100 km"),
        (12, None, "record", "has 2 fields, the header has 3"),
        (13, None, "trip", "missing"),
    ]
    assert table.filter(pl.col("refused_reason").is_null()).height == 10
    named = {r.reason.partition(":")[0] for r in found.refusals if r.field == "object"}
    assert named == {f"{prefix}broken.parquet", f"{prefix}notes.txt"}
    assert objects(found)[f"{prefix}notes.txt"].output is None


def test_a_target_that_is_there_changes_no_answer(how: Scoring, prefix: str) -> None:
    store().put(f"{prefix}a.csv", unlabelled(range(20)))
    store().put(f"{prefix}b.csv", samples.trips(range(20)))
    tables = [read(one) for one in objects(run(how, prefix)).values()]
    assert tables[0].equals(tables[1])


def test_the_output_names_the_version_and_repeats_bit_for_bit(
    how: Scoring, version: Version, prefix: str
) -> None:
    key = f"{prefix}a.csv"
    store().put(key, unlabelled(range(50)))
    first = objects(run(how, prefix))[key]
    metadata = pq.read_metadata(io.BytesIO(store().get(str(first.output)).content)).metadata
    assert metadata[b"modelmint.digest"].decode() == version.digest
    assert metadata[b"modelmint.line"].decode() == LINE
    elsewhere = how.model_copy(update={"output": f"elsewhere/{prefix}"})
    again = objects(run(elsewhere, prefix))[key]
    assert again.output != first.output
    assert again.blake3 == first.blake3


def test_what_is_scored_is_not_scored_again(how: Scoring, prefix: str) -> None:
    for part in range(3):
        store().put(f"{prefix}{part}.csv", unlabelled(range(part, part + 10)))
    first = run(how, prefix)
    assert first.observed == {"unchanged": False, "fresh_rows": 30}
    again = run(how, prefix)
    assert again.observed == {"unchanged": True, "fresh_rows": 0}
    assert again.digest == first.digest
    # A lost output is written again.
    store().delete(str(objects(first)[f"{prefix}1.csv"].output))
    assert run(how, prefix).observed["fresh_rows"] == 10
    # Another object, and one that was overwritten; what the old one gave stays.
    store().put(f"{prefix}3.csv", unlabelled(range(5)))
    store().put(f"{prefix}0.csv", unlabelled(range(7)))
    third = run(how, prefix)
    assert third.observed["fresh_rows"] == 12
    assert (third.objects, third.rows) == (4, 32)
    kept = [item.key for item in store().list(f"{how.output}{prefix}0.csv/")]
    assert len([key for key in kept if key.endswith(".parquet")]) == 2


def test_another_reference_table_is_another_output(how: Scoring, prefix: str) -> None:
    store().put(f"{prefix}a.csv", unlabelled(range(10)))
    run(how, prefix)
    zones = how.references["zones"].model_copy(update={"etag": "another"})
    other = how.model_copy(update={"references": {"zones": zones}})
    assert other.place(source(f"{prefix}a.csv")) != how.place(source(f"{prefix}a.csv"))


def test_an_object_overwritten_since_it_was_listed_is_missed_and_scored_next_time(
    how: Scoring, prefix: str
) -> None:
    store().put(f"{prefix}a.csv", unlabelled(range(5)))
    store().put(f"{prefix}b.csv", unlabelled(range(5)))
    listing = list_prefix(prefix)
    store().put(f"{prefix}a.csv", unlabelled(range(9)))
    store().delete(f"{prefix}b.csv")
    found = score.bare(how, prefix, listing)
    assert found.missed == (f"{prefix}a.csv", f"{prefix}b.csv")
    assert found.rows == 0
    again = run(how, prefix)
    assert (again.rows, again.missed) == (9, ())


@pytest.mark.slow
def test_a_run_killed_anywhere_is_finished_by_the_next(how: Scoring, prefix: str) -> None:
    for part in range(12):
        store().put(f"{prefix}{part:02d}.csv", unlabelled(range(part * 2000, part * 2000 + 2000)))
    program = (
        "import sys; from tasks.score import score; from tasks.scoring import Scoring;"
        "from tasks.snapshot import list_prefix\n"
        "if __name__ == '__main__':\n"
        "    how = Scoring.model_validate_json(sys.argv[1])\n"
        "    score.bare(how, sys.argv[2], list_prefix(sys.argv[2]))\n"
    )
    words = [sys.executable, "-c", program, how.model_dump_json(), prefix]
    with subprocess.Popen(words) as process:
        records: dict[str, str] = {}
        while process.poll() is None and not records:
            listed = store().list(how.output + prefix)
            records = {item.key: item.etag for item in listed if item.key.endswith(".json")}
            time.sleep(0.01)
        process.kill()
    assert records
    before = {i.key: i.etag for i in store().list(how.output + prefix)}
    found = run(how, prefix)
    after = {i.key: i.etag for i in store().list(how.output + prefix)}
    assert (found.objects, found.rows, found.scored) == (12, 24_000, 24_000)
    assert len(after) == 24
    assert before.items() <= after.items()
    assert found.observed["fresh_rows"] <= 24_000 - 2000 * len(records)


def test_without_a_champion_a_version_has_to_be_named(version: Version) -> None:
    with pytest.raises(LookupError, match=f"no line is called '{LINE}'"):
        served(LINE)
    with pytest.raises(NoChampionError, match="digits has no champion"):
        served("digits")
    promote("promoted-trips", version.number, version.digest)
    with pytest.raises(LookupError):
        served("promoted-trips")


def test_an_altered_version_scores_nothing(how: Scoring, version: Version, prefix: str) -> None:
    store().put(f"{prefix}a.csv", unlabelled(range(5)))
    key = version_folder(LINE, version.digest) + MODEL_FILE
    kept = store().get(key).content
    store().put(key, kept[:-1] + b"?")
    fresh = how.model_copy(update={"output": f"fresh/{prefix}"})
    try:
        with pytest.raises(IntegrityError):
            served(LINE, version.number)
        # A worker reads the file anew, and proves it by the digest it was given.
        with pytest.raises(IntegrityError, match="altered"):
            run(fresh, prefix)
    finally:
        store().put(key, kept)


def test_changed_cleaning_is_refused(version: Version) -> None:
    found, verified = served(LINE, version.number)
    stage = verified.recipe.stages["clean"]
    code = {"tests.tasks.samples:clean": "0" * 64}
    identity = stage.identity.model_copy(update={"code": code})
    stages = {**verified.recipe.stages, "clean": stage.model_copy(update={"identity": identity})}
    recipe = verified.recipe.model_copy(update={"stages": stages})
    with pytest.raises(ChangedCodeError, match="samples:clean has changed since"):
        scoring(found, verified.model_copy(update={"recipe": recipe}))


def test_a_line_that_generates_is_not_scored(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Regression, "steps", True)
    with pytest.raises(ValueError, match="ask it through the model server"):
        scoring(*served(LINE, version.number))


def test_outputs_are_never_inputs(how: Scoring, prefix: str) -> None:
    store().put(f"{prefix}a.csv", unlabelled(range(5)))
    inside = how.model_copy(update={"output": f"{prefix}scored/"})
    with pytest.raises(ValueError, match="it would be scored itself"):
        run(inside, prefix)
    with pytest.raises(EmptyPrefixError):
        run(how, "incoming/nothing/")


def test_images_are_answered_from_archives_and_idx_files_alike(made: Made, prefix: str) -> None:
    version = image_version("scored-clothes")
    for name, content in version.files.items():
        store().put(version_folder(version.line, version.digest) + name, content)
    names = (MODEL_FILE, SIGNATURE_FILE)
    manifest = Manifest.of({name: version.files[name] for name in names})
    data = Images(raw="clothes/", size=ImageSize(), split=ByHash())
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            content = png.getvalue() if number != 7 else b"no image"
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    store().put(f"{prefix}a.tar", packed.getvalue())
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", *images.shape)
    store().put(f"{prefix}b-images-idx3-ubyte", head + images.tobytes())
    how = Scoring(
        served=Served(line=version.line, number=1, digest=version.digest, manifest=manifest),
        data=data,
        references={},
        output=f"scored/{prefix}",
    )
    found = run(how, prefix)
    assert (found.rows, found.scored) == (60, 59)
    tables = {key[len(prefix) :]: read(one) for key, one in objects(found).items()}
    from_idx, from_tar = tables["b-images-idx3-ubyte"], tables["a.tar"]
    assert from_tar.row(7, named=True)["refused_field"] == "7.png"
    whole = from_tar.get_column("refused_reason").is_null()
    assert from_tar.filter(whole).equals(from_idx.filter(whole))
    [expected] = how.served.session().run(None, {"image": images[:, None]})
    probabilities = from_idx.get_column("probabilities").struct.unnest().to_numpy()
    assert np.array_equal(probabilities, expected)
    assert from_idx.get_column("kind").to_list() == [LABELS[i] for i in expected.argmax(axis=1)]
    assert made.bucket
