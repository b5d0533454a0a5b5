"""Models in a container registry by the OCI distribution protocol: an artifact's layers are files, and say how they are called.

| who pushed it | a file's name stands in |
|---|---|
| oras push | annotation `org.opencontainers.image.title` |
| modctl, kitops (CNCF model spec) | annotation `org.cncf.model.filepath` |
| docker model push | nowhere: its GGUF layer is `model.gguf` |

Layers that are archives are refused by name: only a container runtime unpacks them (`cache.type: Image`).
Credentials are `OCI_USERNAME` and `OCI_PASSWORD`; the token protocol is that of distribution's "token authentication".
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from octavo_server.errors import StartupError
from octavo_server.sources.http import HttpClient, check_status, range_header
from octavo_server.sources.store import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from octavo_server.sources.uri import Artifact

USERNAME, PASSWORD, PLAIN_HTTP = "OCI_USERNAME", "OCI_PASSWORD", "OCI_PLAIN_HTTP"
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
GGUF_LAYER = re.compile(r"application/vnd\.docker\.ai\.gguf\.v\d+")
ARCHIVE_LAYER = re.compile(r"(tar|tar\+gzip|tar\+zstd|tar\.gzip)$")
MAX_LAYERS = 10_000
_REMEDY = f"set {USERNAME} and {PASSWORD}"


class RegistryStore:
    """Owns the connections and the token of the present."""

    def __init__(self, artifact: Artifact, env: Mapping[str, str]) -> None:
        scheme = "http" if env.get(PLAIN_HTTP, "").lower() == "true" else "https"
        self._artifact = artifact
        self._base = f"{scheme}://{artifact.registry}/v2/{artifact.repository}"
        self._login = (env.get(USERNAME, ""), env.get(PASSWORD, ""))
        self._http = HttpClient()
        self._lock = threading.Lock()
        self._authorization = ""
        self._digest = ""

    @property
    def title(self) -> str:
        sign = "@" if ":" in self._artifact.reference else ":"
        return f"oci://{self._artifact.registry}/{self._artifact.repository}{sign}{self._artifact.reference}"

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return self._digest

    def list_files(self) -> Sequence[RemoteFile]:
        manifest = self._manifest()
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not layers or len(layers) > MAX_LAYERS:
            raise StartupError("ModelInvalid", f"{self.title} is no artifact with layers; push the model's files to it")
        return [self._describe(layer) for layer in layers]

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        url = f"{self._base}/blobs/sha256:{file.sha256}"
        with self._http.open(url, {**self._signed(url), **range_header(offset)}) as answer:
            check_status(answer, f"{file.name} of {self.title}", remedy=_REMEDY)
            yield from self._http.pieces(answer, offset=offset)

    def close(self) -> None:
        self._http.close()

    def _manifest(self) -> dict[str, Any]:
        url = f"{self._base}/manifests/{self._artifact.reference}"
        with self._http.open(url, {**self._signed(url), "Accept": ", ".join(MANIFESTS)}) as answer:
            check_status(answer, self.title, remedy=_REMEDY)
            text = self._http.document(answer)
        self._digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
        if self._artifact.reference.startswith("sha256:") and self._artifact.reference != self._digest:
            raise StartupError("ChecksumMismatch", f"{self.title}: the registry gave a manifest with {self._digest}")
        try:
            manifest = json.loads(text)
        except ValueError as error:
            raise StartupError("ModelInvalid", f"{self.title}: the registry's manifest is no JSON") from error
        return manifest if isinstance(manifest, dict) else {}

    def _describe(self, layer: Any) -> RemoteFile:
        try:
            digest, size, kind = str(layer["digest"]), int(layer["size"]), str(layer.get("mediaType", ""))
            annotations = layer.get("annotations") or {}
            name = next((str(annotations[key]) for key in TITLES if key in annotations), "")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StartupError("ModelInvalid", f"{self.title} has a layer that cannot be read: {error!r}") from error
        if ARCHIVE_LAYER.search(kind):
            raise StartupError(
                "ModelInvalid",
                f"{self.title} has an archive as a layer ({kind}); push the files one by one, or mount it (cache.type Image)",
            )
        name = name or ("model.gguf" if GGUF_LAYER.fullmatch(kind) else "")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or not name:
            missing = "no name" if not name else "no SHA-256"
            raise StartupError("ModelInvalid", f"{self.title} has a layer of {kind or 'no type'} with {missing}")
        hexadecimal = digest.removeprefix("sha256:")
        return RemoteFile(name=name, size=size, version=hexadecimal, sha256=hexadecimal)

    def _signed(self, url: str) -> dict[str, str]:
        """The header that the registry wants for `url`; asked for anew where the last one no longer does."""
        with self._lock:
            with self._http.open(url, self._header(), method="HEAD") as answer:
                if answer.status == 401:
                    self._authorization = self._authorize(answer.headers.get("WWW-Authenticate", ""))
            return self._header()

    def _header(self) -> dict[str, str]:
        return {"Authorization": self._authorization} if self._authorization else {}

    def _authorize(self, challenge: str) -> str:
        """What answers a challenge; empty where nothing does."""
        scheme, _, rest = challenge.partition(" ")
        user, password = self._login
        basic = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user else ""
        if scheme.lower() != "bearer":
            return basic
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = asked.pop("realm", "")
        is_safe = urlsplit(realm).scheme == "https" or self._base.startswith("http://")
        if not is_safe:
            raise StartupError("ModelAccessDenied", f"{self._artifact.registry} wants its token from no https address")
        asked.setdefault("scope", f"repository:{self._artifact.repository}:pull")
        with self._http.open(f"{realm}?{urlencode(asked)}", {"Authorization": basic} if basic else {}) as answer:
            check_status(answer, f"a token for {self.title}", remedy=_REMEDY)
            text = self._http.document(answer)
        try:
            said = json.loads(text)
            return f"Bearer {said.get('token') or said['access_token']}"
        except (ValueError, KeyError, AttributeError) as error:
            raise StartupError("ModelAccessDenied", f"{self._artifact.registry} gave no token") from error
