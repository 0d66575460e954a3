"""A search on a real line: trials train on Dask at once, and a second search finds them again."""

from flows.search import search
from models import catalog
from models.changes import changed
from models.space import Choice
from models.spec import Training
from tasks.land import land
from tasks.store import store

LINE = "diabetes"


def test_a_search_repeats_and_its_words_give_the_best_line_again(services: dict[str, str]) -> None:
    land(catalog.find(LINE))
    training = Training(epochs=3, batch_size=16)
    space = {"training.optimizer.lr": Choice(values=(1e-3, 0.03))}
    first = search(LINE, 3, 2, space=space, training=training)
    assert len(first.trials) == 3
    assert first.trials[0].settings == {"training.optimizer.lr": 1e-3}
    best = first.best
    assert best.value is not None
    assert best.value == min(t.value or 0.0 for t in first.trials)
    again = search(LINE, 3, 2, space=space, training=training)
    assert again == first
    kept = [item.key for item in store().list(f"searches/{LINE}/")]
    assert kept == [first.keep()]
    base = catalog.find(LINE).changed(training=training)
    line = base.changed(**changed(base, best.words))
    assert line.training.optimizer.lr == best.settings["training.optimizer.lr"]
    assert line.training.epochs == 3
