import os
import signal
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from mypy_boto3_s3 import S3Client

from deployments.local.service import Running
from deployments.local.store import environment, store

pytestmark = pytest.mark.timeout(300)

OWN_KEYS = {"AWS_ACCESS_KEY_ID": "AKIAOWNKEY", "AWS_SECRET_ACCESS_KEY": "the user's own secret"}


def client(home: Path, running: Running) -> S3Client:
    names = environment(home, running)
    return boto3.client(
        "s3",
        endpoint_url=names["AWS_ENDPOINT_URL"],
        aws_access_key_id=names["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=names["AWS_SECRET_ACCESS_KEY"],
        region_name=names["AWS_REGION"],
        # What the store misses in its first answer must fail here, not be tried again.
        config=Config(retries={"total_max_attempts": 1}),
    )


def read(home: Path, running: Running, key: str) -> bytes:
    return client(home, running).get_object(Bucket="lines", Key=key)["Body"].read()


def serving(running: Running) -> bool:
    """Whether that store still runs; its number alone may be another process's by now."""
    try:
        return str(running.ports["s3"]) in " ".join(psutil.Process(running.pid).cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OWN_KEYS.items():
            patch.setenv(name, value)
        with store(home).use() as running:
            s3 = client(home, running)
            s3.create_bucket(Bucket="lines")
            s3.put_object(Bucket="lines", Key="a", Body=b"1")
            yield running
        assert not serving(running)


def refused(call: ClientError) -> bool:
    return call.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_bucket_takes_no_more_of_the_disk_than_its_objects(home: Path, running: Running) -> None:
    """Seven volumes a bucket, counted as if full, once refused the thirtieth bucket."""
    s3 = client(home, running)
    for number in range(30):
        s3.create_bucket(Bucket=f"many-{number}")
        s3.put_object(Bucket=f"many-{number}", Key="a", Body=b"1")
    assert len(list((home / "store" / "data").glob("many-*.dat"))) == 30


def test_the_environment_is_all_a_client_needs(
    home: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(home, running).items():
        monkeypatch.setenv(name, value)
    s3 = boto3.session.Session().client("s3")
    assert s3.get_object(Bucket="lines", Key="a")["Body"].read() == b"1"
    assert environment(home, running)["AWS_ALLOW_HTTP"] == "true"
    assert environment(home, running)["AWS_EC2_METADATA_DISABLED"] == "true"


def test_nobody_gets_in_without_a_signature(running: Running) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=running.url,
        region_name="us-east-1",
        config=Config(signature_version=UNSIGNED),
    )
    with pytest.raises(ClientError) as reading:
        s3.get_object(Bucket="lines", Key="a")
    with pytest.raises(ClientError) as writing:
        s3.put_object(Bucket="lines", Key="b", Body=b"2")
    with pytest.raises(ClientError) as listing:
        s3.list_objects_v2(Bucket="lines")
    assert all(refused(each.value) for each in (reading, writing, listing))


def test_wrong_keys_are_refused(home: Path, running: Running) -> None:
    right = environment(home, running)
    # The third pair is what the user had in the environment when the store was started.
    for access, secret in [
        (right["AWS_ACCESS_KEY_ID"], "wrong"),
        ("wrong", right["AWS_SECRET_ACCESS_KEY"]),
        (OWN_KEYS["AWS_ACCESS_KEY_ID"], OWN_KEYS["AWS_SECRET_ACCESS_KEY"]),
    ]:
        s3 = boto3.client(
            "s3",
            endpoint_url=running.url,
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )
        with pytest.raises(ClientError) as caught:
            s3.get_object(Bucket="lines", Key="a")
        assert refused(caught.value)


def test_its_secrets_are_private(home: Path, running: Running) -> None:
    for name in ("credentials.json", "s3.json"):
        assert (home / "store" / name).stat().st_mode & 0o777 == 0o600
    secret = environment(home, running)["AWS_SECRET_ACCESS_KEY"]
    assert len(secret) == 40
    assert secret not in running.log.read_text()
    assert secret not in (home / "store/service.json").read_text()


def test_two_homes_have_their_own_objects_and_keys(
    tmp_path: Path, home: Path, running: Running
) -> None:
    with store(tmp_path).use() as other:
        assert client(tmp_path, other).list_buckets()["Buckets"] == []
        assert set(other.ports.values()).isdisjoint(running.ports.values())
        with pytest.raises(ClientError) as caught:
            client(home, other).list_buckets()
        assert refused(caught.value)
    assert read(home, running, "a") == b"1"


def test_objects_survive_kill_and_stop(tmp_path: Path) -> None:
    body = os.urandom(5 << 20)
    with store(tmp_path).use() as killed:
        s3 = client(tmp_path, killed)
        s3.create_bucket(Bucket="lines")
        s3.put_object(Bucket="lines", Key="before the kill", Body=body)
        os.kill(killed.pid, signal.SIGKILL)
        with store(tmp_path).use() as stopped:
            assert read(tmp_path, stopped, "before the kill") == body
            client(tmp_path, stopped).put_object(Bucket="lines", Key="before the stop", Body=body)
    with store(tmp_path).use() as again:
        assert len({killed.pid, stopped.pid, again.pid}) == 3
        assert read(tmp_path, again, "before the stop") == body
        assert read(tmp_path, again, "before the kill") == body
    left = [
        path
        for port in (*stopped.ports.values(), *again.ports.values())
        for number in (port, port + 10_000)
        for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock")
    ]
    assert left == []
    # One election folder, not one for every start.
    assert len(list((tmp_path / "store/data").glob("m[0-9]*"))) == 1
