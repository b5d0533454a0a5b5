"""Container images without a registry: a docker-archive made by the standard library, the same bytes each time.

Two images are enough. `pause` holds a pod's namespaces. `base` is empty but for folders, links and a passwd line: our
code reaches it by read-only hostPath mounts (see mounts.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster.errors import UnavailableError
from e2e.cluster.requirements import system_program
from e2e.cluster.shell import run

PAUSE_IMAGE = "octavo.local/pause:e2e"
BASE_IMAGE = "octavo.local/base:e2e"
USER_ID = 65532


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What one image holds."""

    folders: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    """Path → what it points at."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Path → bytes; each is executable and readable by all."""
    entrypoint: Sequence[str] = ()


def write_images(folder: Path) -> list[Path]:
    """Write both images as docker-archives into `folder`; returns their paths."""
    # Nothing need be compiled for it: containerd ends a sandbox by SIGKILL, so that a sleeper does.
    pause = Content(files={"busybox": _busybox()}, entrypoint=["/busybox", "sleep", "2147483647"])
    return [
        write_archive(folder / "pause.tar", PAUSE_IMAGE, pause),
        write_archive(folder / "base.tar", BASE_IMAGE, _base_content()),
    ]


def write_archive(path: Path, reference: str, content: Content) -> Path:
    """Write an image of one uncompressed layer, importable by `ctr images import`."""
    layer = _layer(content)
    config = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": list(content.entrypoint),
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "e2e.cluster.image"}],
        },
        sort_keys=True,
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        _add_file(archive, config_name, config, 0o644)
        _add_file(archive, "layer.tar", layer, 0o644)
        _add_file(archive, "manifest.json", manifest, 0o644)
    return path


def _base_content() -> Content:
    merged = [name for name in ("bin", "sbin", "lib", "lib64") if Path("/", name).is_symlink()]
    separate = [name for name in ("bin", "sbin", "lib", "lib64") if Path("/", name).is_dir() and name not in merged]
    passwd = f"root:x:0:0::/:/sbin/nologin\noctavo:x:{USER_ID}:{USER_ID}::/tmp:/sbin/nologin\n"
    group = f"root:x:0:\noctavo:x:{USER_ID}:\n"
    return Content(
        folders=["dev", "etc", "models", "proc", "run", "sys", "tmp", "usr", "var", *separate],
        links={name: str(Path("/", name).readlink()) for name in merged},
        files={"etc/passwd": passwd.encode(), "etc/group": group.encode()},
    )


def _layer(content: Content) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name in sorted(content.folders):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            folder.mode = 0o1777 if name == "tmp" else 0o755
            layer.addfile(folder)
        for name, target in sorted(content.links.items()):
            link = tarfile.TarInfo(name)
            link.type = tarfile.SYMTYPE
            link.linkname = target
            layer.addfile(link)
        for name, data in sorted(content.files.items()):
            _add_file(layer, name, data, 0o755)
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = mode
    archive.addfile(info, io.BytesIO(data))


def _architecture() -> str:
    machine = run(["uname", "-m"]).strip()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _busybox() -> bytes:
    """A static busybox, whose `sleep` needs nothing else in the image."""
    program = Path(system_program("busybox")).read_bytes()
    if b"/ld-linux" in program or b"/ld-musl" in program:
        raise UnavailableError("busybox is linked dynamically here; the pause image needs Debian's busybox-static")
    return program
