"""Which files a model's location means: a Hugging Face folder or one GGUF file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_server.errors import StartupError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLocation:
    """A model on this machine's disk."""

    path: Path
    """A folder with config.json, or a .gguf file."""

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix.lower() == ".gguf"


def resolve_location(location: str | Path) -> ModelLocation:
    """The folder or file that `location` names; a folder that holds nothing but one GGUF means that file.

    Raises:
        StartupError: ModelNotFound, when there is neither.
    """
    path = Path(location).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise StartupError(
                "ModelNotFound", f"{path} is a file, but not a .gguf; give a .gguf file or a model folder"
            )
        return ModelLocation(path=path)
    if not path.is_dir():
        raise StartupError("ModelNotFound", f"{path} does not exist; give a model folder or a .gguf file")
    if (path / "config.json").is_file():
        return ModelLocation(path=path)
    candidates = sorted(path.glob("*.gguf"))
    if len(candidates) == 1:
        return ModelLocation(path=candidates[0])
    if candidates:
        names = ", ".join(item.name for item in candidates)
        raise StartupError("ModelNotFound", f"{path} holds {len(candidates)} GGUF files ({names}); name one of them")
    raise StartupError("ModelNotFound", f"{path} holds neither config.json nor a .gguf file")


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`.

    Raises:
        StartupError: ModelNotFound without the file, ModelInvalid when it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StartupError("ModelNotFound", f"{path} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StartupError("ModelInvalid", f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise StartupError("ModelInvalid", f"{path} holds no JSON object")
    return value
