"""A file, or a folder with the usual names, behind an https address.

No server lists a folder, so that its files are asked for by name: the configuration, the tokenizer, and the weights that
`model.safetensors.index.json` names. A token comes from `HTTPS_BEARER_TOKEN`.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from octavo_server.errors import StartupError
from octavo_server.sources.http import HttpClient, check_status, range_header
from octavo_server.sources.store import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import urllib3

    from octavo_server.sources.uri import WebModel

TOKEN = "HTTPS_BEARER_TOKEN"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ASKED_FOR = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "model.safetensors",
)
"""Each may be missing."""


class WebStore:
    """Owns the connections."""

    def __init__(self, model: WebModel, env: Mapping[str, str]) -> None:
        self._model = model
        self._http = HttpClient()
        token = env.get(TOKEN)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def title(self) -> str:
        # Without the query, which may hold a signature.
        return self._model.url.partition("?")[0]

    @property
    def digest(self) -> str:
        return ""

    def list_files(self) -> Sequence[RemoteFile]:
        if not self._model.is_folder:
            return [self._required(PurePosixPath(self._model.path).name)]
        files = [self._required(CONFIG), *self._optional(ASKED_FOR)]
        index = self._optional([INDEX])
        if index:
            files += [*index, *(self._required(name) for name in self._shards())]
        return files

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        headers = {**self._headers, **range_header(offset, file.version)}
        with self._http.open(self._url(file.name), headers) as answer:
            self._check(answer, file.name)
            yield from self._http.pieces(answer, offset=offset)

    def close(self) -> None:
        self._http.close()

    def _optional(self, names: Sequence[str]) -> list[RemoteFile]:
        found = (self._describe(name) for name in names)
        return [file for file in found if file is not None]

    def _required(self, name: str) -> RemoteFile:
        file = self._describe(name)
        if file is None:
            raise StartupError("ModelNotFound", f"{self.title} has no {name} (status 404); check the address")
        return file

    def _describe(self, name: str) -> RemoteFile | None:
        """None where there is no such file. By GET, because a signed address may be good for nothing else."""
        with self._http.open(self._url(name), self._headers) as answer:
            if answer.status == 404:
                return None
            self._check(answer, name)
            length = answer.headers.get("Content-Length", "")
            if not length.isdigit():
                raise StartupError("ModelInvalid", f"{self.title}: the server does not say how long {name} is")
            tag = answer.headers.get("ETag", "")
            version = tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
            return RemoteFile(name=name, size=int(length), version=version)

    def _shards(self) -> list[str]:
        with self._http.open(self._url(INDEX), self._headers) as answer:
            self._check(answer, INDEX)
            text = self._http.document(answer)
        try:
            return sorted(set(json.loads(text)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StartupError("ModelInvalid", f"{self.title}{INDEX} names no files: {error}") from error

    def _url(self, name: str) -> str:
        if not self._model.is_folder:
            return self._model.url
        parts = urlsplit(self._model.url)
        return urlunsplit(parts._replace(path=parts.path + quote(name)))

    def _check(self, answer: urllib3.BaseHTTPResponse, name: str) -> None:
        what = f"{self.title}{name}" if self._model.is_folder else self.title
        check_status(answer, what, remedy=f"set {TOKEN}, or sign the address anew")
