"""What a person writes to name a model: a path on this machine, or a place that files are fetched from. Pure but for `exists`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from octavo_server.errors import ConfigError

SUPPORTED = (
    "hf://ORG/NAME[/FILE.gguf][@REVISION], https://HOST/FILE.gguf, https://HOST/FOLDER/, s3://BUCKET/PATH, "
    "gs://BUCKET/PATH, oci://REGISTRY/REPOSITORY[:TAG|@sha256:DIGEST], file:///PATH"
)

_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<file>/[\w./-]+\.gguf)?(@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BUCKET = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/(?P<path>[^/\s?#][^\s?#]*)")
_ARTIFACT = re.compile(
    r"(?P<registry>[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?)/(?P<repository>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A repository of the hub, or one file of it."""

    repository: str
    file: str = ""
    """A .gguf file in it; empty: all that serving reads."""
    revision: str | None = None
    """Branch, tag or commit; None: the main branch."""

    @property
    def name(self) -> str:
        """What clients call it when nobody said."""
        return Path(self.file).stem if self.file else self.repository


@dataclass(frozen=True, slots=True, kw_only=True)
class WebModel:
    """A file behind an https address, or a folder of files where the path ends in a slash."""

    url: str

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.url).path)

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")

    @property
    def name(self) -> str:
        """As `HubModel.name`."""
        return PurePosixPath(self.path).name.removesuffix(".gguf") or "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketModel:
    """An object of a bucket, or all objects below a path."""

    scheme: str
    """s3 or gs."""
    bucket: str
    path: str
    """Without slashes at its ends."""

    @property
    def name(self) -> str:
        """As `HubModel.name`."""
        return PurePosixPath(self.path).name.removesuffix(".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Files in a container registry, one a layer."""

    registry: str
    repository: str
    reference: str
    """A tag, or sha256:DIGEST."""

    @property
    def name(self) -> str:
        """As `HubModel.name`."""
        return PurePosixPath(self.repository).name


Source = HubModel | WebModel | BucketModel | Artifact | Path


def parse_source(text: str) -> Source:
    """What `text` names: with a scheme what that says; else the hub where it looks like a name there and no file is called so.

    Raises:
        ConfigError: a scheme that is not served, or a name that is none.
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        hub = _hub_model(text)
        return Path(text) if hub is None or Path(text).exists() else hub
    rest = text[scheme.end() :]
    match scheme[0]:
        case "hf://":
            return _hub_model(rest) or _refuse(text, "name on the hub", "hf://ORG/NAME[/FILE.gguf][@REVISION]")
        case "file://":
            return Path(rest) if rest.startswith("/") else _refuse(text, "path", "file:///PATH with three slashes")
        case "https://":
            return _web_model(text) or _refuse(text, "address", "https://HOST/FILE.gguf or https://HOST/FOLDER/")
        case "s3://" | "gs://":
            return _bucket_model(text) or _refuse(text, "place in a bucket", f"{scheme[0]}BUCKET/PATH")
        case "oci://":
            return _artifact(rest) or _refuse(text, "artifact", "oci://REGISTRY/REPOSITORY[:TAG|@sha256:DIGEST]")
    raise ConfigError(f"{scheme[0]} is not supported as a source of models; supported are {SUPPORTED}")


def _refuse(text: str, what: str, form: str) -> Path:
    """Raises; the type is for the expressions above."""
    raise ConfigError(f"{text[:200]} is no {what}; write {form}")


def _hub_model(text: str) -> HubModel | None:
    match = _HUB.fullmatch(text)
    if match is None:
        return None
    return HubModel(
        repository=match["repository"], file=(match["file"] or "").removeprefix("/"), revision=match["revision"]
    )


def _web_model(text: str) -> WebModel | None:
    parts = urlsplit(text)
    # A password in the address would be in every log.
    is_address = parts.hostname and parts.username is None and not re.search(r"\s", text)
    model = WebModel(url=text.partition("#")[0])
    return model if is_address and (model.is_folder or model.path.lower().endswith(".gguf")) else None


def _bucket_model(text: str) -> BucketModel | None:
    scheme, _, rest = text.partition("://")
    match = _BUCKET.fullmatch(rest)
    if match is None:
        return None
    return BucketModel(scheme=scheme, bucket=match["bucket"], path=match["path"].rstrip("/"))


def _artifact(rest: str) -> Artifact | None:
    match = _ARTIFACT.fullmatch(rest)
    if match is None:
        return None
    reference = match["digest"] or match["tag"] or "latest"
    return Artifact(registry=match["registry"], repository=match["repository"], reference=reference)
