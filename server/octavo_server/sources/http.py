"""GET and HEAD over http(s) for sources: what the other side's answers mean, and bodies from any byte on.

Never sends a header of credentials to another host than the one that was asked, and follows no redirect away from https.
"""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from octavo_server.errors import StartupError
from octavo_server.sources.store import CHUNK_BYTES, BrokenOffError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import urllib3

STALL_S = 60.0
"""A connection on which nothing comes for so long is given up."""
MAX_REDIRECTS = 5
MAX_DOCUMENT_BYTES = 16 * 2**20


class HttpClient:
    """Keeps connections; used by several threads."""

    def __init__(self) -> None:
        import urllib3

        # Tries are counted by whoever knows whether bytes came.
        self._pool = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(connect=20.0, read=STALL_S),
            maxsize=8,
            ca_certs=fallback_authorities(),
        )

    @contextmanager
    def open(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer, whatever its status, its body not read yet.

        Raises:
            BrokenOffError: there is none.
            StartupError: it leads away from https.
        """
        import urllib3

        try:
            answer = self._follow(url, {"Accept-Encoding": "identity", **(headers or {})}, method)
        except urllib3.exceptions.HTTPError as error:
            raise BrokenOffError(f"{host_of(url)} cannot be reached ({reason_of(error)})") from error
        try:
            yield answer
        except urllib3.exceptions.HTTPError as error:
            raise BrokenOffError(f"{host_of(url)} broke off ({reason_of(error)})") from error
        finally:
            # What was not read must not come before the next answer.
            answer.close()

    def _follow(self, url: str, headers: Mapping[str, str], method: str) -> urllib3.BaseHTTPResponse:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._pool.request(
                method, url, headers=dict(headers), preload_content=False, redirect=False, decode_content=False
            )
            location = answer.headers.get("Location")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            answer.close()
            target = urljoin(url, location)
            if urlsplit(url).scheme == "https" != urlsplit(target).scheme:
                raise StartupError("ModelAccessDenied", f"{host_of(url)} leads away from https; name the right address")
            if urlsplit(url)[:2] != urlsplit(target)[:2]:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target
        raise StartupError("ModelNotFound", f"{host_of(url)} redirects more than {MAX_REDIRECTS} times")

    def pieces(self, answer: urllib3.BaseHTTPResponse, *, offset: int) -> Iterator[bytes]:
        """The body from byte `offset` on, where the answer is of a request with `range_header(offset)`."""
        skip = offset if answer.status == 200 else 0
        for data in answer.stream(CHUNK_BYTES, decode_content=False):
            if skip >= len(data):
                skip -= len(data)
                continue
            yield data[skip:]
            skip = 0

    def document(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        """A small body."""
        data: bytes = answer.read(MAX_DOCUMENT_BYTES + 1, decode_content=False)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise StartupError(
                "ModelInvalid", f"a description of more than {MAX_DOCUMENT_BYTES} bytes came; is it one?"
            )
        return data

    def close(self) -> None:
        self._pool.clear()


def fallback_authorities() -> str | None:
    """A file of certificates to trust, where the machine has none of its own, as in images that are nearly empty."""
    system = ssl.get_default_verify_paths()
    if system.cafile or (system.capath and any(Path(system.capath).iterdir())):
        return None
    import certifi

    return certifi.where()


def range_header(offset: int, version: str = "") -> dict[str, str]:
    """Asks for the bytes from `offset` on, of this version alone."""
    if not offset:
        return {}
    return {"Range": f"bytes={offset}-", **({"If-Range": version} if version.startswith('"') else {})}


def check_status(answer: urllib3.BaseHTTPResponse, what: str, *, remedy: str) -> None:
    """Raises what an answer that is no success means: StartupError, or BrokenOffError where it may pass.

    Args:
        answer: whose status is looked at.
        what: was asked for.
        remedy: of a refusal.
    """
    status = answer.status
    if status in (200, 206):
        return
    if status in (401, 403):
        raise StartupError("ModelAccessDenied", f"{what} is refused (status {status}); {remedy}")
    if status in (404, 410):
        raise StartupError("ModelNotFound", f"{what} does not exist (status {status}); check the address")
    if status in (408, 425, 429) or status >= 500:
        raise BrokenOffError(f"{what} was answered with status {status}")
    raise StartupError("ModelNotFound", f"{what} was answered with status {status}; check the address")


def host_of(url: str) -> str:
    """Without the query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def reason_of(error: Exception) -> str:
    """A few words for a library's error."""
    text = str(getattr(error, "reason", "") or error)
    return text.rpartition(": ")[2][:200] or type(error).__name__
