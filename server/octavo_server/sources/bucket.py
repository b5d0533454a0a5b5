"""Objects of S3 and Google Cloud Storage, and of what speaks like them, through obstore.

The library reads `AWS_*` and `GOOGLE_*` itself (AWS_ENDPOINT_URL for another S3), finds a pod's or machine's own identity
where none is set, and repeats requests that fail for a while.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from octavo_server.errors import ConfigError, StartupError
from octavo_server.sources.http import fallback_authorities
from octavo_server.sources.store import CHUNK_BYTES, BrokenOffError, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from octavo_server.sources.uri import BucketModel

GOOGLE_JSON = "GOOGLE_APPLICATION_CREDENTIALS_JSON"
STALL = "60s"
RETRIES = {"max_retries": 3, "retry_timeout": datetime.timedelta(seconds=60)}
REMEDY = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": f"set {GOOGLE_JSON}, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}


class BucketStore:
    """One object, or all below a path."""

    def __init__(self, model: BucketModel, env: Mapping[str, str]) -> None:
        self._model = model
        self._store = _open(model, env)
        self._folder = model.path

    @property
    def title(self) -> str:
        return f"{self._model.scheme}://{self._model.bucket}/{self._model.path}"

    @property
    def digest(self) -> str:
        return ""

    def list_files(self) -> Sequence[RemoteFile]:
        import obstore

        try:
            files = [self._describe(meta) for batch in obstore.list(self._store, self._model.path) for meta in batch]
            if files:
                return sorted(files, key=lambda file: file.name)
            meta = obstore.head(self._store, self._model.path)
        except Exception as error:
            raise self._explained(error) from error
        self._folder = str(PurePosixPath(self._model.path).parent)
        return [self._describe(meta)]

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        import obstore

        path = str(PurePosixPath(self._folder) / file.name) if self._folder != "." else file.name
        try:
            got = obstore.get(
                self._store, path, options={"range": {"offset": offset}, "if_match": file.version or None}
            )
            for piece in got.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(piece)
        except Exception as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _describe(self, meta: Any) -> RemoteFile:
        name = PurePosixPath(meta["path"])
        return RemoteFile(
            name=str(name.relative_to(self._folder)) if self._folder != "." else str(name),
            size=meta["size"],
            version=meta["e_tag"] or "",
        )

    def _explained(self, error: Exception) -> Exception:
        """The library's error in our words; what it does not name is given back as it is."""
        from obstore import exceptions

        if not isinstance(error, (exceptions.BaseError, FileNotFoundError)):
            return error
        if isinstance(error, exceptions.PreconditionError):
            return StartupError("DownloadStalled", f"{self.title} was changed while it was read; run it again")
        # A list that is refused has no class of its own.
        status = re.search(r"status code: (\d{3})", str(error))
        denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        if isinstance(error, denied) or (status and status[1] in ("401", "403")):
            return StartupError("ModelAccessDenied", f"access to {self.title} is refused; {REMEDY[self._model.scheme]}")
        if isinstance(error, FileNotFoundError) or (status and status[1] == "404"):
            return StartupError("ModelNotFound", f"{self.title} does not exist; check bucket and path")
        return BrokenOffError(_sentence(error))


def _open(model: BucketModel, env: Mapping[str, str]) -> Any:
    from obstore.store import GCSStore, S3Store

    allow_http = model.scheme == "gs" or env.get("AWS_ALLOW_HTTP", "").lower() == "true"
    client: dict[str, Any] = {"read_timeout": STALL, "allow_http": allow_http}
    authorities = fallback_authorities()
    if authorities is not None:
        client["root_certificate"] = Path(authorities).read_bytes()
    options: Any = {"client_options": client, "retry_config": RETRIES}
    if model.scheme == "gs" and env.get(GOOGLE_JSON):
        options["service_account_key"] = env[GOOGLE_JSON]
    try:
        if model.scheme == "s3":
            return S3Store(model.bucket, **options)
        # An emulator's address stands in the key.
        return GCSStore(model.bucket, **options)
    except Exception as error:
        raise ConfigError(f"the credentials for {model.scheme}:// cannot be used: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """The first line: below it the library prints its structures."""
    return " ".join(str(error).split("\n\n")[0].split())[:300]
