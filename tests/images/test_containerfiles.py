"""The recipes of the images: linted, several stages, nobody's root, and what the chart and the operator start in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
RECIPES = sorted(IMAGES.glob("*.Containerfile"))
STAGES = {("control-plane", "operator"), ("control-plane", "gateway"), ("server", "")}
"""(recipe, target) of what is published; the last stage where the target is empty."""


def instructions(recipe: str) -> list[tuple[str, str]]:
    """(keyword, rest) with continued lines joined and comments left out."""
    text = (IMAGES / f"{recipe}.Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def stage(recipe: str, target: str) -> list[tuple[str, str]]:
    """Instructions of one stage, its FROM first."""
    stages: list[list[tuple[str, str]]] = []
    for keyword, rest in instructions(recipe):
        if keyword == "FROM":
            stages.append([])
        if stages:
            stages[-1].append((keyword, rest))
    named = [each for each in stages if each[0][1].endswith(f" AS {target}")] if target else stages
    return named[-1]


def values(found: list[tuple[str, str]], keyword: str) -> list[str]:
    return [rest for each, rest in found if each == keyword]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if hadolint is None:
        pytest.skip("no hadolint; the extra `dev` brings it on x86-64")

    ran = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (0, ran.stderr)


@pytest.mark.parametrize(("recipe", "target"), STAGES)
def test_what_is_published_is_of_a_stage_without_what_built_it(recipe: str, target: str) -> None:
    found = stage(recipe, target)

    assert found[0][1].split()[0] == "${BASE}"
    assert all(rest.startswith("--from=build") and "/opt/octavo" in rest for rest in values(found, "COPY"))
    assert not any(word in rest for rest in values(found, "RUN") for word in ("pip", "uv "))


@pytest.mark.parametrize(("recipe", "target"), STAGES)
def test_it_runs_as_the_user_that_the_chart_names_by_number(recipe: str, target: str) -> None:
    """A name would need /etc/passwd, and runAsNonRoot can judge a number alone."""
    context = yaml.safe_load((ROOT / "charts" / "octavo" / "values.yaml").read_text())["podSecurityContext"]
    found = stage(recipe, target)

    assert values(found, "USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    keywords = [keyword for keyword, _ in found]
    assert "RUN" not in keywords[keywords.index("USER") :]


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_it_starts_what_the_chart_starts_on_the_ports_that_it_opens(component: str) -> None:
    chart = yaml.safe_load((ROOT / "charts" / "octavo" / "values.yaml").read_text())
    found = stage("control-plane", component)
    template = (ROOT / "charts" / "octavo" / "templates" / f"{component}.yaml").read_text()

    assert json.loads(values(found, "CMD")[0]) == chart[component]["command"]
    assert set(values(found, "EXPOSE")[0].split()) == set(re.findall(r"containerPort: (\d+)", template))


def test_the_server_starts_with_the_arguments_of_a_pod() -> None:
    from octavo_operator.desired.engine_args import SERVER_PORT

    found = stage("server", "")

    assert json.loads(values(found, "ENTRYPOINT")[0]) == ["octavo", "serve"]
    assert values(found, "EXPOSE") == [str(SERVER_PORT)]
    assert not values(found, "CMD")


@pytest.mark.parametrize(("recipe", "extras"), [("control-plane", {"operator", "gateway"}), ("server", {"server"})])
def test_the_extras_that_are_installed_exist(recipe: str, extras: set[str]) -> None:
    installed = " ".join(values(instructions(recipe), "RUN"))

    found = set(re.findall(r"\.\[(\w+)\]", installed)) | set(re.findall(r"--extra (\w+)", installed))
    assert extras <= found


@pytest.mark.parametrize("recipe", ["control-plane", "server"])
def test_what_is_copied_from_the_checkout_is_there(recipe: str) -> None:
    for rest in values(instructions(recipe), "COPY"):
        *sources, _ = rest.split()
        assert [path for path in sources if not path.startswith("--") and not rest.startswith("--from")
                and not (ROOT / path).exists()] == []  # fmt: skip


def test_the_builder_is_given_what_is_copied_and_nothing_else_of_the_checkout() -> None:
    """Else environments, models and .git are sent along, and whatever secrets lie about."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = {
        path
        for recipe in ("control-plane", "server")
        for rest in values(instructions(recipe), "COPY")
        if not rest.startswith("--from")
        for path in rest.split()[:-1]
    }

    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert rules[-1] == "**/__pycache__"


@pytest.mark.parametrize(("recipe", "target"), STAGES)
def test_it_says_what_it_is(recipe: str, target: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', values(stage(recipe, target), "LABEL")[0]))
    license_ = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]

    assert labels.keys() == {"title", "licenses", "description"}
    assert (labels["title"], labels["licenses"]) == (f"octavo-{target or 'server'}", license_)


def test_the_cpu_image_compiles_its_kernels_where_its_servers_look_for_them() -> None:
    build, run = stage("server", "build"), stage("server", "")

    [line] = [rest for rest in values(build, "RUN") if "octavo compile" in rest]
    folder = re.search(r"OCTAVO_CACHE=(\S+)", line)
    assert folder is not None
    assert f"OCTAVO_COMPILED_KERNELS={folder[1]}" in values(run, "ENV")[0]
