"""Tiny text lines through the stages that compute, and to the answer a server gives."""

import re
from typing import Any, NamedTuple

import numpy as np
import orjson
import polars as pl
import pytest

from deployments.serving.session import Served, open_version
from models import rnn
from models.data import Data, RefusedRequest, Tensors
from models.digests import json_digest
from models.forms import Form
from models.generation import SAMPLING, Sampling
from models.language import NextToken
from models.objectives import Classification, Objective
from models.passages import BLOCK, Passages
from models.spec import Budget, Family, Gate, Optimizer, Training
from models.splits import ByGroup, ByHash
from models.texts import Texts
from models.vocabulary import BytePairs, Characters, Vocabulary
from tasks.answered import incomparable
from tasks.compress import search
from tasks.dataset import manifest, rows, tensors
from tasks.evaluate import measure
from tasks.gate import judge
from tasks.jobs import CompressJob, EvaluateJob, GateJob, TrainJob
from tasks.refs import Artifact, Champion, Dataset, Report, Verdict, Weights
from tasks.store import store
from tasks.trainer import fit, predict, restore
from tests.tasks.conftest import Made, cleaned
from tests.tasks.killing import assert_a_killed_training_goes_on_to_the_same_bits

GOOD, BAD = ("sunny", "warm", "kind"), ("rainy", "cold", "rude")
REVIEWS = Texts(
    raw="opinions/",
    length=24,
    vocabulary=Characters(),
    split=ByHash(test=0.25, validation=0.2),
)
OPINION = Classification(target="label", labels=("bad", "good"))
CLASSIFIER = rnn.Classifier(size="tiny", pairs=64, dropout=0.1)
TRAINING = Training(epochs=6, batch_size=16, optimizer=Optimizer(lr=0.02), device="cpu")
LONGER = TRAINING.model_copy(update={"epochs": 25})
RHYME = "the cat sat on the mat and the rat sat on the cat; "


def opinions(words: tuple[str, ...], count: int = 120) -> str:
    """Different texts, each with one telling word."""
    return "".join(f"day {number} was  {words[number % 3]}\n" for number in range(count))


def passages(vocabulary: Vocabulary) -> Passages:
    """Passages of 32 characters in blocks of 4."""
    split = ByGroup(column=BLOCK, test=0.2, validation=0.2)
    return Passages(raw="rhymes/", length=32, block=4, vocabulary=vocabulary, split=split)


class Made_(NamedTuple):
    """A line's way to a verdict."""

    model: Family
    dataset: Dataset
    weights: Weights
    report: Report
    artifact: Artifact
    verdict: Verdict

    def served(self) -> Served:
        """The version as a server opens it."""
        files = self.artifact.manifest.files
        return open_version(
            "line", "1", "0" * 64, {n: store().get_file(self.artifact.manifest, n) for n in files}
        )


def produced(
    data: Data, objective: Objective, model: Family, training: Training, *forms: Form
) -> Made_:
    dataset = cleaned(data, objective)
    key = json_digest([data.raw, model.model_dump(mode="json")])
    job = TrainJob(model=model, training=training, dataset=dataset, checkpoint=key)
    weights = fit(job, lambda _: None)
    judging = EvaluateJob(model=model, dataset=dataset, weights=weights, threads=1, confidence=0.9)
    report = measure(judging, lambda _: None)
    budget = Budget(quality_loss=0.5, slowdown=100, candidates=forms)
    compressing = CompressJob(
        model=model, training=training, budget=budget, dataset=dataset, weights=weights
    )
    artifact = search(compressing, lambda _: None)
    gating = GateJob(
        gate=Gate(), budget=budget, dataset=dataset, artifact=artifact, report=report, champion=None
    )
    verdict = judge(gating, lambda _: None)
    return Made_(model, dataset, weights, report, artifact, verdict)


@pytest.fixture(scope="module")
def reviews(_made: Made) -> dict[str, Made_]:
    """What `made_reviews` made."""
    return {}


@pytest.fixture
def made_reviews(made: Made, reviews: dict[str, Made_]) -> Made_:
    if not reviews:
        both = "nobody knows\n"
        store().put("raw/opinions/good/a.txt", (opinions(GOOD) + both).encode())
        store().put("raw/opinions/bad/a.txt", (opinions(BAD) + both + "\n").encode())
        again = f"text,label\n{both.strip()},good\nday 0 was sunny,good\nday 7 was warm,bad\n"
        store().put("raw/opinions/more.csv", again.encode())
        reviews["made"] = produced(REVIEWS, OPINION, CLASSIFIER, TRAINING, "int8-dynamic")
    return reviews["made"]


@pytest.fixture(scope="module")
def rhymes(_made: Made) -> dict[str, Made_]:
    """What `made_rhymes` made, by vocabulary."""
    return {}


def rhyming(rhymes: dict[str, Made_], name: str) -> Made_:
    """The writer whose tokens are `characters` or `byte pairs`."""
    if name not in rhymes:
        text = "".join(RHYME + f"verse {number}. " for number in range(70))
        store().put("raw/rhymes/cat.txt", text.encode())
        vocabulary = Characters() if name == "characters" else BytePairs(merges=40)
        rhymes[name] = produced(
            passages(vocabulary), NextToken(), rnn.Writer(size="tiny", dropout=0.0), LONGER,
            "int8-weights",
        )  # fmt: skip
    return rhymes[name]


@pytest.fixture(params=["characters", "byte pairs"])
def made_rhymes(made: Made, rhymes: dict[str, Made_], request: pytest.FixtureRequest) -> Made_:
    del made
    return rhyming(rhymes, request.param)


def answers(served: Served, tensors: Tensors) -> list[dict[str, Any]]:
    """What the server answers to what it read."""
    objective = served.signature.objective
    if isinstance(objective, NextToken):
        [sampling] = [Sampling.model_validate_json(one) for one in tensors[SAMPLING]]
        steps = objective.write(served.run, tensors, sampling)
        return [objective.written(list(steps), sampling)]
    return served.answers(served.run(tensors))


def everything(dataset: Dataset) -> pl.DataFrame:
    return pl.concat([rows(dataset, subset) for subset in ("train", "validation", "test")])


# ---- reviews


def test_a_text_under_both_labels_is_quarantined_wherever_it_is(made_reviews: Made_) -> None:
    texts = everything(made_reviews.dataset)["text"].to_list()
    assert "nobody knows" not in texts
    assert "day 7 was warm" not in texts
    assert len(texts) == len(set(texts)) == 239
    refused = {r.reason: r.rows for r in made_reviews.dataset.refused}
    assert refused == {
        "is there with another label too": 5,
        "repeats a row of an earlier object": 1,
        "empty": 1,
    }


def test_what_is_left_out_is_out_of_every_count(made_reviews: Made_) -> None:
    found = manifest(made_reviews.dataset)
    counted: dict[str, int] = {}
    for partition in found.partitions:
        for targets in partition.targets.values():
            counted = {n: counted.get(n, 0) + targets.get(n, 0) for n in ("good", "bad")}
    assert counted == {"good": 119, "bad": 120}


def test_a_classifier_learns_and_is_shown_beside_its_baselines(made_reviews: Made_) -> None:
    baselines = made_reviews.report.baselines
    assert set(baselines) == {"majority", "tf-idf logistic"}
    # MLflow takes names of metrics made of these alone.
    assert all(re.fullmatch(r"[\w\-. :/]+", name) for name in baselines)
    assert baselines["tf-idf logistic"]["accuracy"] > 0.9
    assert made_reviews.report.metrics["accuracy"].value > 0.9
    assert made_reviews.verdict.decision == "promote"


def test_a_served_classifier_answers_as_the_trained_one(made_reviews: Made_) -> None:
    served = made_reviews.served()
    tokens, count = served.signature.features.request(b"  day 300 \n was   kind ", "text/plain")
    assert count == 1
    answer = answers(served, tokens)[0]
    assert answer["label"] == "good"
    network = restore(made_reviews.model, made_reviews.dataset, made_reviews.weights)
    expected = predict(network, ["tokens"], tokens)[0]
    assert answer["probabilities"]["good"] == pytest.approx(float(expected[1]), abs=0.1)
    batch, count = served.signature.features.request(
        b'["day 3 was cold", {"text": "day 4 was warm"}]', "application/json"
    )
    assert [a["label"] for a in answers(served, batch)] == ["bad", "good"]


# ---- verses


def test_a_language_model_learns_and_beats_counting(made_rhymes: Made_) -> None:
    report = made_rhymes.report
    value = report.metrics["bits_per_character"].value
    assert set(report.baselines) == {"unigram", "bigram"}
    assert value < report.baselines["bigram"]["bits_per_character"]
    assert value < report.baselines["unigram"]["bits_per_character"] / 2
    assert made_rhymes.verdict.metrics["bits_per_character"] == pytest.approx(value, rel=0.3)


def test_a_served_language_model_goes_on_from_its_state(made_rhymes: Made_) -> None:
    """And nothing that is still to come has a part in it, quantised as it is."""
    assert made_rhymes.artifact.chosen == "int8-weights"
    served = made_rhymes.served()
    assert [spec.name for spec in served.inputs] == ["tokens", "state"]
    assert [spec.name for spec in served.outputs] == ["log_probabilities", "next_state"]
    inputs, _ = tensors(made_rhymes.dataset, "test")
    tokens = inputs["tokens"][:2, :9]
    zeros = np.zeros((2, 32), np.float32)
    whole = served.run({"tokens": tokens, "state": zeros})
    first = served.run({"tokens": tokens[:, :4], "state": zeros})
    second = served.run({"tokens": tokens[:, 4:], "state": first["next_state"]})
    parts = [found["log_probabilities"] for found in (first, second)]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole["log_probabilities"], atol=1e-5)
    np.testing.assert_allclose(second["next_state"], whole["next_state"], atol=1e-5)


def test_a_state_of_its_own_keeps_a_champion_comparable(made_rhymes: Made_) -> None:
    manifest = made_rhymes.artifact.manifest
    assert incomparable(made_rhymes.dataset.signature, manifest) is None


def test_a_champion_of_another_vocabulary_is_judged_by_its_bits(
    made: Made, rhymes: dict[str, Made_]
) -> None:
    del made
    ours, theirs = rhyming(rhymes, "byte pairs"), rhyming(rhymes, "characters")
    champion = Champion(
        digest="c" * 64, number=1, manifest=theirs.artifact.manifest, dataset=theirs.dataset
    )
    job = GateJob(
        gate=Gate(), budget=Budget(quality_loss=0.5, slowdown=100), dataset=ours.dataset,
        artifact=ours.artifact, report=ours.report, champion=champion,
    )  # fmt: skip
    found = judge(job, lambda _: None).comparison
    assert found is not None
    assert (found.rows, found.seen) == (ours.dataset.rows["test"], 0)
    expected = theirs.verdict.metrics["bits_per_character"]
    assert found.champion_metric == pytest.approx(expected)


def test_a_replay_finds_one_fingerprint_for_training_and_compression(made_rhymes: Made_) -> None:
    assert made_rhymes.artifact.fingerprint == made_rhymes.weights.fingerprint


def written(served: Served, **asked: Any) -> dict[str, Any]:
    features = served.signature.features
    tensors, _ = features.request(orjson.dumps(asked), "application/json")
    return answers(served, tensors)[0]


def test_a_prompt_is_continued_as_often_as_asked_with_the_same_words(made_rhymes: Made_) -> None:
    served = made_rhymes.served()
    asked: dict[str, Any] = {"prompt": "the cat sat on ", "characters": 40, "seed": 3}
    first = written(served, **asked)
    assert first == written(served, **asked)
    assert len(first["text"]) == 40
    likeliest = written(served, **asked, temperature=0)["text"]
    assert "the cat" in likeliest
    assert likeliest == written(served, **asked, temperature=1, top_k=1)["text"]
    texts = {written(served, **{**asked, "seed": seed}, temperature=3)["text"] for seed in range(4)}
    assert len(texts) == 4
    plain = answers(served, served.signature.features.request(b"the cat", "text/plain")[0])[0]
    assert (len(plain["text"]), plain["temperature"]) == (200, 0.7)


def test_no_prompt_at_all_begins_a_text(made_rhymes: Made_) -> None:
    served = made_rhymes.served()
    assert len(written(served, prompt="", characters=5)["text"]) == 5


def test_impossible_wishes_are_refused(made_rhymes: Made_) -> None:
    served = made_rhymes.served()
    with pytest.raises(RefusedRequest, match="temperature"):
        written(served, prompt="a", temperature=-1)
    with pytest.raises(RefusedRequest, match="prompt is over 10,000 characters"):
        served.signature.features.request(b"a" * 10_001, "text/plain")


def killable(made: Made_, model: Family) -> TrainJob:
    training = TRAINING.model_copy(update={"epochs": 3})
    key = json_digest(["killed", model.model_dump(mode="json")])
    return TrainJob(model=model, training=training, dataset=made.dataset, checkpoint=key)


def test_a_killed_classifier_goes_on_to_the_same_bits(made_reviews: Made_) -> None:
    assert_a_killed_training_goes_on_to_the_same_bits(killable(made_reviews, CLASSIFIER))


@pytest.mark.parametrize("made_rhymes", ["characters"], indirect=True)
def test_a_killed_writer_goes_on_to_the_same_bits(made_rhymes: Made_) -> None:
    writer = rnn.Writer(size="tiny", dropout=0.1)
    assert_a_killed_training_goes_on_to_the_same_bits(killable(made_rhymes, writer))
