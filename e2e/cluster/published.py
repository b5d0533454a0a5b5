"""The images as people build them, from `images/` by buildah, for a cluster that runs these instead of the checkout.

No registry is asked: the base is a Debian with Python that debootstrap makes. pip's configuration and the certificates
of this machine are mounted into the builds, so that its mirror of PyPI serves there too. One server image, with CUDA
in it, serves on CPUs as well.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from e2e.cluster.errors import UnavailableError
from e2e.cluster.image import image
from e2e.cluster.paths import CHECKOUT
from e2e.cluster.shell import run
from e2e.cluster.tools import Say

VARIABLE = "OCTAVO_E2E_IMAGES"
"""Names a folder that `build` has filled; the cases then run what lies in it."""
RECIPES = {
    "operator": ("control-plane", "operator"),
    "gateway": ("control-plane", "gateway"),
    "server": ("server", ""),
}
"""Image → its recipe in `images/` and the stage of it, empty for the last."""

_BASE = "octavo.local/base:e2e"
_RELEASE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_PROGRAMS = ("buildah", "debootstrap")


def given() -> Path | None:
    """The folder that OCTAVO_E2E_IMAGES names, None where it names none."""
    folder = os.environ.get(VARIABLE)
    return Path(folder).absolute() if folder else None


def archives(folder: Path) -> list[Path]:
    """The docker-archives in `folder`; raises UnavailableError where one is absent."""
    found = [folder / f"{name}.tar" for name in RECIPES]
    absent = [path.name for path in found if not path.exists()]
    if absent:
        raise UnavailableError(f"{folder} lacks {', '.join(absent)}; build them: python -m e2e.cluster images {folder}")
    return found


def build(folder: Path, say: Say) -> list[Path]:
    """Build every image into `folder`: 8 GB, and three times as much meanwhile; returns the archives."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    if lacking:
        raise UnavailableError(f"apt-get install --no-install-recommends {' '.join(lacking)}")
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        say("making the base …")
        _make_base(scratch)
        for name, (recipe, stage) in RECIPES.items():
            say(f"building {name} …")
            _build(scratch, image(name), recipe, stage)
            archive = folder / f"{name}.tar"
            archive.unlink(missing_ok=True)
            _buildah(scratch, "push", image(name), f"docker-archive:{archive}:{image(name)}")
            say(f"{archive}: {archive.stat().st_size / 2**20:,.0f} MiB")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return archives(folder)


def _buildah(scratch: Path, *words: str) -> str:
    """Buildah with a store of its own below `scratch`, in whole copies: no mount, so that one removal clears all."""
    places = (f"--root={scratch}/root", f"--runroot={scratch}/run", "--storage-driver=vfs")
    return run(["buildah", *places, *words], timeout_s=3600).strip()


def _make_base(scratch: Path) -> None:
    """A Debian with Python, in the place of the recipes' own base."""
    folder = scratch / "base"
    run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _RELEASE, folder], timeout_s=900)
    container = _buildah(scratch, "from", "scratch")
    _buildah(scratch, "add", "--quiet", container, str(folder), "/")
    _buildah(scratch, "commit", "--quiet", "--rm", container, _BASE)


def _build(scratch: Path, reference: str, recipe: str, stage: str) -> None:
    target = [f"--target={stage}"] if stage else []
    file = CHECKOUT / "images" / f"{recipe}.Containerfile"
    # chroot: works inside a container too, and has this machine's network.
    words = ["--isolation=chroot", "--quiet", f"--build-arg=BASE={_BASE}", *_mounts(scratch), *target]
    _buildah(scratch, "build", *words, f"--file={file}", f"--tag={reference}", str(CHECKOUT))


def _mounts(scratch: Path) -> list[str]:
    """What lets the builds reach the packages that this machine reaches."""
    uv = scratch / "uv"
    uv.mkdir(exist_ok=True)
    (uv / "uv.toml").write_text("native-tls = true\n")
    places = {uv: "/etc/uv", Path("/etc/ssl/certs"): "/etc/ssl/certs", Path("/etc/pip.conf"): "/etc/pip.conf"}
    return [f"--volume={source}:{target}:ro" for source, target in places.items() if source.exists()]
