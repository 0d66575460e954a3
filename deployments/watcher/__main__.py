"""Watch the bucket for new data and Prefect for dead runs, until stopped.

    python -m deployments.watcher

Needs the store (AWS_ENDPOINT_URL and credentials, MODELMINT_BUCKET) and PREFECT_API_URL, and keeps
nothing outside of them. Several may run: they tell each event by the same id. `settings.py` says
what can be set.
"""

import logging
import os
import sys

from prefect.settings import PREFECT_API_URL

from deployments.watcher import webhook
from deployments.watcher.hints import Hints, queue_thread
from deployments.watcher.runs import Runs
from deployments.watcher.settings import Settings
from deployments.watcher.watcher import Watcher
from tasks.store import BUCKET_SETTING

log = logging.getLogger("modelmint.watcher")


def main() -> None:
    """Watch until stopped."""
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("modelmint.watcher").setLevel("INFO")
    if not PREFECT_API_URL.value():
        # Prefect would start a server that nobody else knows of.
        sys.exit("PREFECT_API_URL names no Prefect server: set it to one, http://.../api")
    settings = Settings()
    hints = Hints(os.environ.get(BUCKET_SETTING, "modelmint"))
    watcher = Watcher(settings, hints, Runs(settings.pool))
    webhook.listen(hints, watcher.pulse, settings.host, settings.port, settings.token)
    if settings.queue:
        queue_thread(hints, settings.queue)
    while watcher.changed is None:
        watcher.round()
    log.warning("%s was changed: the watcher begins anew with it", watcher.changed)
    os.execv(sys.executable, [sys.executable, "-m", "deployments.watcher"])


if __name__ == "__main__":
    main()
