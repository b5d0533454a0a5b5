"""The API server as a few calls over plain JSON, with the kubeconfig that kubectl itself would use.

Every failure is a CliError of one line: what was asked, what the API server said, and the remedy where there is one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlencode

from octavo_cli.errors import CliError

TIMEOUT_S = 15.0
MAX_CONNECTIONS = 16
"""To the API server at once."""
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
Json = dict[str, Any]


class Refused(CliError):
    """The API server's answer was not 2xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster(Protocol):
    """What the commands need; the tests' cluster is a dictionary of paths."""

    namespace: str
    """Where commands look unless they are told otherwise."""
    kubectl_flags: list[str]
    """For a kubectl that shall reach the same cluster."""

    def get(self, path: str, **query: str) -> Json: ...

    def text(self, path: str, **query: str) -> str: ...

    def lines(self, path: str, **query: str) -> Iterator[str]: ...

    def send(self, method: str, path: str, body: Any, *, content_type: str = "application/json") -> Json: ...


def find(cluster: Cluster, path: str, **query: str) -> Json | None:
    """None where there is no such thing."""
    try:
        return cluster.get(path, **query)
    except Refused as refused:
        if refused.status == 404:
            return None
        raise


class KubeCluster:
    """Owns one connection pool; `api` is the official client's, used for credentials and transport alone."""

    def __init__(self, api: Any, namespace: str, kubectl_flags: list[str]) -> None:
        self.namespace = namespace
        self.kubectl_flags = kubectl_flags
        self._api = api

    def get(self, path: str, **query: str) -> Json:
        return _parsed(self.text(path, **query), path)

    def text(self, path: str, **query: str) -> str:
        with self._exchange("GET", path, query=query) as response:
            return bytes(response.data).decode(errors="replace")

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """Of a stream that may go on for ever."""
        with self._exchange("GET", path, query=query, timeout_s=None) as response:
            rest = b""
            for piece in response.stream(2**16, decode_content=True):
                *whole, rest = (rest + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")

    def send(self, method: str, path: str, body: Any, *, content_type: str = "application/json") -> Json:
        with self._exchange(method, path, body=body, content_type=content_type) as response:
            return _parsed(bytes(response.data).decode(errors="replace"), path)

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_s: float | None = TIMEOUT_S,
    ) -> Iterator[Any]:
        """One exchange; raises Refused for everything but 2xx, and CliError where no answer came."""
        import urllib3
        from kubernetes import client

        headers = {"Accept": "application/json, */*", "Content-Type": content_type}
        url = f"{self._api.configuration.host}{path}{'?' + urlencode(query) if query else ''}"
        try:
            self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            wait = timeout_s if timeout_s is not None else (TIMEOUT_S, None)
            response = self._api.call_api(method, url, headers, body=body, _request_timeout=wait).response
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            raise CliError(f"{self._api.configuration.host} does not answer: {_root_cause(error)}") from error
        try:
            if response.status >= 300:
                raise _refusal(method, path, response)
            yield response
        except urllib3.exceptions.HTTPError as error:
            raise CliError(f"{method} {path} broke off: {error}") from error
        finally:
            response.release_conn()


@contextlib.contextmanager
def connect(*, kubeconfig: str, context: str, namespace: str) -> Iterator[KubeCluster]:
    """By the kubeconfig, as kubectl finds it; inside of a pod by its service account where there is none."""
    import yaml
    from kubernetes import client, config

    # The last ones are what the client makes of a file that is no kubeconfig.
    unusable = (config.ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError)
    configuration = client.Configuration()
    try:
        config.load_config(config_file=kubeconfig or None, context=context or None, client_configuration=configuration)
    except unusable as error:
        raise CliError(
            f"no cluster to talk to: {' '.join(str(error).split())}; name one with --kubeconfig and --context"
        ) from error
    flags = [f"--{name}={value}" for name, value in (("kubeconfig", kubeconfig), ("context", context)) if value]
    # A cluster that is away shall be told at once, not after three tries.
    configuration.retries = False
    configuration.connection_pool_maxsize = MAX_CONNECTIONS
    with client.ApiClient(configuration) as api:
        yield KubeCluster(api, namespace or _context_namespace(config, kubeconfig, context), flags)


def _context_namespace(config: Any, kubeconfig: str, context: str) -> str:
    try:
        contexts, active = config.list_kube_config_contexts(config_file=kubeconfig or None)
    except config.ConfigException:
        return "default"
    chosen = next((each for each in contexts if each["name"] == context), active)
    return str(chosen.get("context", {}).get("namespace") or "default")


def _refusal(method: str, path: str, response: Any) -> Refused:
    text = bytes(response.data).decode(errors="replace")
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        message = text[:300].strip() or str(response.reason)
    if response.status == 401:
        message = f"{message}; the kubeconfig's credentials are not accepted, log in again"
    return Refused(int(response.status), f"{method} {path}: {response.status}: {message}")


def _root_cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, BaseException) else error)


def _parsed(text: str, path: str) -> Json:
    try:
        answer = json.loads(text)
    except ValueError:
        raise CliError(f"{path}: the answer is not JSON: {text[:100]!r}") from None
    return answer if isinstance(answer, dict) else {"items": answer}
