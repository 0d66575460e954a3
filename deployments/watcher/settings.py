"""What can be set about the watcher: each field is a variable MODELMINT_WATCH_<FIELD>."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """How long to wait for what; all times in seconds, measured by clocks that do not jump."""

    model_config = SettingsConfigDict(
        env_prefix="MODELMINT_WATCH_", frozen=True, use_attribute_docstrings=True
    )

    quiet: float = Field(default=1.0, ge=0.0)
    """How long a line's listing must stay the same before its data counts as complete."""
    longest: float = Field(default=60.0, gt=0.0)
    """How long new data waits at most for that."""
    sweep: float = Field(default=10.0, gt=0.0)
    """Between two looks at every listing, whether or not anything was heard."""
    share: float = Field(default=0.05, gt=0.0, le=1.0)
    """Part of the time that listing may take: long listings are made less often."""
    again: float = Field(default=20.0, gt=0.0)
    """How long an event may remain without a run before it is told once more, then twice as long,
    and so on up to an hour."""
    watchdog: float = Field(default=5.0, gt=0.0)
    """Between two looks at the runs."""
    silent: float = Field(default=30.0, gt=10.0)
    """How long a running production may give no sign of life."""
    pending: float = Field(default=90.0, gt=0.0)
    """How long a submitted run may take until it runs: where images are pulled, make it longer."""
    tries: int = Field(default=3, ge=0)
    """How often a run that died is started again."""
    pool: str = "modelmint"
    """Prefect's work pool of the deployments whose runs are started again: that of prefect.yaml."""
    queue: str = ""
    """URL of an SQS queue that gets the bucket's notifications; none unless set. boto3 finds it by
    AWS_ENDPOINT_URL_SQS."""
    host: str = "127.0.0.1"
    """Where the store's webhook is listened for, and asked for health."""
    port: int = Field(default=8086, ge=1, le=65535)
    """Its port."""
    token: str = ""
    """What the webhook must show; without one every hint is refused."""
