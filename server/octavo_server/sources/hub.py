"""Models by name from the Hugging Face hub: `ORG/NAME`, or `ORG/NAME/FILE.gguf`.

The library keeps the files in its cache (`HF_HOME`), resumes what was cut off and needs no network for what is there;
`HF_TOKEN` and `HF_ENDPOINT` are its own variables. Only what serving reads is fetched.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.errors import StartupError
from octavo_server.sources.folder import check_room
from octavo_server.sources.store import TEXT_FILES, WEIGHT_FILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo_server.sources.store import OnBytes
    from octavo_server.sources.uri import HubModel


def fetch_model(
    model: HubModel,
    *,
    on_bytes: OnBytes,
    files: Sequence[str] = TEXT_FILES + WEIGHT_FILES,
    to: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Downloads what is missing and gives the folder, or the .gguf file; `on_bytes(done, total)` counts what is fetched.

    Args:
        model: what to fetch.
        on_bytes: told how far it has come, from several threads.
        files: patterns of what is fetched where the model is a whole repository.
        to: the folder to put it into; None: the library's cache.
        endpoint: of the hub; None: as `HF_ENDPOINT` says.

    Raises:
        StartupError: ModelNotFound, ModelAccessDenied, or DownloadStalled where the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, file = model.repository, model.file
    arguments: dict[str, Any] = {
        "repo_id": repository,
        "revision": model.revision,
        "allow_patterns": [file] if file else list(files),
        "local_dir": to,
        "endpoint": endpoint,
    }
    try:
        plan = _plan(arguments)
        if file and plan is not None and not plan:
            raise StartupError("ModelNotFound", f"{repository} on the hub has no file {file}")
        total = sum(item.file_size or 0 for item in plan or () if item.will_download)
        check_room(total, _folder_for(to), repository)
        folder = Path(snapshot_download(**arguments, tqdm_class=_byte_counter(total, on_bytes)))
    except LocalEntryNotFoundError as error:
        raise StartupError(
            "DownloadStalled",
            f"the hub cannot be reached and {repository} is not in the cache; check the network, or give a local path",
        ) from error
    except Exception as error:
        raise _explained(error, repository, model.revision) from error
    return folder / file if file else folder


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository, as the hub knows it."""

    name: str
    sha256: str | None
    """Of large files; None: the hub knows the git blob alone."""
    blob_id: str


def list_files(model: HubModel, *, endpoint: str | None = None) -> tuple[str, list[HubFile]]:
    """The commit that the revision stands for now, and its files.

    Raises:
        StartupError: as fetch_model.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=endpoint).model_info(model.repository, revision=model.revision, files_metadata=True)
    except Exception as error:
        raise _explained(error, model.repository, model.revision) from error
    files = [
        HubFile(
            name=item.rfilename,
            sha256=item.lfs.sha256 if item.lfs is not None else None,
            blob_id=item.blob_id or "",
        )
        for item in info.siblings or ()
    ]
    return info.sha or "", files


def _folder_for(to: Path | None) -> Path:
    """An existing folder on the disk that the files will be on."""
    from huggingface_hub import constants

    folder = to or Path(constants.HF_HUB_CACHE)
    return next(each for each in (folder, *folder.absolute().parents) if each.is_dir())


def _plan(arguments: dict[str, Any]) -> Sequence[Any] | None:
    """What would be downloaded; None without a network, when the cache decides."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        plan: Sequence[Any] = snapshot_download(**arguments, dry_run=True, tqdm_class=_byte_counter(0, None))
    except DryRunError:
        return None
    return plan


def _explained(error: Exception, repository: str, revision: str | None) -> Exception:
    """The library's error in our words; what it does not name is given back as it is."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return StartupError("ModelAccessDenied", f"{repository} is gated; accept its terms on the hub and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return StartupError(
            "ModelNotFound", f"the hub has no model {repository}, or it is private; check the name, or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return StartupError("ModelNotFound", f"{repository} on the hub has no revision {revision}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return StartupError("ModelAccessDenied", f"the hub refuses {repository} (status {status}); set HF_TOKEN")
        return StartupError("DownloadStalled", f"the hub answered {status} for {repository}; it is tried again")
    # The library's HTTP client is another from version to version; the name of the class is not.
    if isinstance(error, ConnectionError) or any(each.__name__ == "TransportError" for each in type(error).__mro__):
        return StartupError("DownloadStalled", f"the hub cannot be reached for {repository}; check the network")
    return error


def _byte_counter(total: int, on_bytes: OnBytes | None) -> Any:
    """A progress bar that draws nothing and adds up the bytes of all files."""
    from tqdm.auto import tqdm

    lock = threading.Lock()
    done = 0

    class ByteCounter(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B" and on_bytes is not None
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> Any:
            nonlocal done
            if self._counts_bytes and on_bytes is not None:
                with lock:
                    done = min(total, done + int(n or 0))
                on_bytes(done, total)
            return super().update(n)

    return ByteCounter
