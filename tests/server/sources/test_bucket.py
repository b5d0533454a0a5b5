"""S3 and Google Cloud Storage through obstore, against moto's server, which knows S3's API and so Google's XML one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from octavo_server.errors import ConfigError, StartupError
from octavo_server.sources import bucket, fetch
from octavo_server.sources.download import Wanted, download
from octavo_testing.sites import Site, running_site

WEIGHTS = bytes(range(256)) * 8192
OBJECTS = {
    "models/qwen/config.json": b"{}",
    "models/qwen/model.safetensors": WEIGHTS,
    "models/qwen/sub/x.safetensors": b"sub",
    "models/qwen/model.bin": b"never fetched",
    "models/qwen2/config.json": b"another",
    "one.gguf": b"GGUF",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server with the bucket `weights`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket="weights")
    for key, data in OBJECTS.items():
        client.put_object(Bucket="weights", Key=key, Body=data, ACL="public-read")
    client.close()
    yield url
    server.stop()


@pytest.fixture
def scheme(request: pytest.FixtureRequest, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment that leads this scheme to the server."""
    point_at(endpoint, monkeypatch)
    return str(request.param)


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "GOOGLE_APPLICATION_CREDENTIALS_JSON": json.dumps(
            {
                "gcs_base_url": endpoint,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
        ),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(bucket, "RETRIES", {"max_retries": 0})


both = pytest.mark.parametrize("scheme", ["s3", "gs"], indirect=True)


def get(uri: str, to: Path) -> Path:
    return download(uri, to, Wanted(), lambda *_: None)


@both
def test_all_that_serving_reads_below_a_path(scheme: str, tmp_path: Path) -> None:
    path = get(f"{scheme}://weights/models/qwen", tmp_path / "to")

    found = {each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file()}
    assert {name for name in found if not name.startswith(".octavo/")} == {
        "config.json",
        "model.safetensors",
        "sub/x.safetensors",
    }
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert (path / "config.json").read_bytes() == b"{}"


@both
def test_a_machine_without_certificates_of_its_own_can_fetch_too(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")

    assert get(f"{scheme}://weights/one.gguf", tmp_path) == tmp_path / "one.gguf"


@both
def test_one_object(scheme: str, tmp_path: Path) -> None:
    assert get(f"{scheme}://weights/one.gguf", tmp_path) == tmp_path / "one.gguf"
    assert (tmp_path / "one.gguf").read_bytes() == b"GGUF"


@both
def test_a_part_is_gone_on_with_behind_its_last_byte(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, offsets = bucket.BucketStore.read, []

    def cut_off(self: bucket.BucketStore, file: object, offset: int) -> Iterator[bytes]:
        offsets.append(offset)
        for data in read(self, file, offset):  # type: ignore[arg-type]
            if not offset:
                yield data[:100]
                raise bucket.BrokenOffError("cut")
            yield data

    monkeypatch.setattr(bucket.BucketStore, "read", cut_off)

    path = get(f"{scheme}://weights/models/qwen/model.safetensors", tmp_path)

    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert path == tmp_path
    assert offsets == [0, 100]


@both
@pytest.mark.parametrize("place", ["weights/nothing", "absent/models"])
def test_what_is_not_there(scheme: str, tmp_path: Path, place: str) -> None:
    with pytest.raises(StartupError, match="does not exist; check bucket and path") as caught:
        get(f"{scheme}://{place}", tmp_path)

    assert caught.value.reason == "ModelNotFound"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (403, "ModelAccessDenied", "refused; set (AWS_ACCESS_KEY_ID|GOOGLE_APP)"),
        (503, "DownloadStalled", "tried 5 times"),
    ],
)
def test_says_why_it_cannot(
    scheme: str, status: int, reason: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site({})
    site.statuses = [status] * 100
    with running_site(site):
        point_at(site.url, monkeypatch)
        with pytest.raises(StartupError, match=words) as caught:
            get(f"{scheme}://weights/models", tmp_path)

    assert caught.value.reason == reason


def test_credentials_that_are_none_are_told_without_showing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", "hunter2")

    with pytest.raises(ConfigError, match="credentials for gs:// cannot be used") as caught:
        get("gs://weights/models", tmp_path)
    assert "hunter2" not in str(caught.value)
