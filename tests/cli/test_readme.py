"""What README.md and docs/ show works: each command is run here, or checked here and run where a cluster is."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from e2e.cluster.__main__ import _parser as cluster_parser
from octavo_cli.__main__ import COMMANDS
from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.local.manifests import load_manifests
from octavo_operator.api.validation import parse_model_deployment
from octavo_testing.local_mode import running_up

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
WITH_FAKE_SERVER = (sys.executable, str(Path(__file__).parent / "local" / "up_with_fake_server.py"))
QUICKSTART_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language in all documents."""
    fences = [re.findall(r"^```(\w*)\n(.*?)^```$", each.read_text(), re.DOTALL | re.MULTILINE) for each in DOCUMENTS]
    return [body for found in fences for kind, body in found if kind == language]


def commands() -> list[str]:
    return list(dict.fromkeys(line for each in (*blocks(""), *blocks("sh")) for line in each.splitlines() if line))


def is_run_by(file: str, *words: str) -> None:
    """The file is where the command is really run; it holds these words."""
    text = (ROOT / file).read_text()
    assert [word for word in words if word not in text] == []


def a_script(command: str) -> None:
    script, *arguments = command.split()
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
    assert [path for path in arguments if not (ROOT / path).exists()] == []
    if script == "./scripts/test":
        is_run_by(".ci/run", script)


def of_local_mode(command: str) -> None:
    """`test_local_mode_and_the_openai_client_work_as_shown` runs the one of each name."""
    name = command.split()[1]
    assert [line for line in commands() if line.split()[:2] == ["octavo", name]] == [command]


def that_prints(command: str) -> None:
    ran = octavo(*command.split()[1:])
    assert (ran.returncode, bool(ran.stdout)) == (0, True), ran.stderr


def of_the_plan(command: str) -> None:
    """tests/server/plan/test_command.py runs it; here, that the flags are known and the GPU is in the table."""
    from octavo_server.plan.command import plan_parser
    from octavo_server.plan.gpus import find_gpu

    find_gpu(plan_parser().parse_strictly(command.split()[2:]).gpu)


def of_the_bench(command: str) -> None:
    """tests/server/bench runs each against a server, a model or files; here, that the flags are known."""
    from octavo_server.bench.cli import compare_parser
    from octavo_server.bench.latency import latency_parser
    from octavo_server.bench.serve_plan import serve_parser
    from octavo_server.bench.startup import startup_parser
    from octavo_server.bench.throughput import throughput_parser

    parsers = (serve_parser, throughput_parser, latency_parser, startup_parser, compare_parser)
    parser = {parser().prog: parser for parser in parsers}[" ".join(command.split()[:3])]()
    parser.parse_strictly(command.split()[3:])


def of_the_server(command: str) -> None:
    """tests/server runs servers; here, that the flags are known and their values can be used."""
    from octavo_server.cli import serve_parser
    from octavo_server.config import EngineConfig, ServerConfig
    from octavo_server.flags import build, read_settings

    values = serve_parser().parse_strictly(command.split()[2:])
    settings = read_settings(values, {}, EngineConfig, ServerConfig)
    build(EngineConfig, settings)
    build(ServerConfig, settings)


def of_the_offline_batch(command: str) -> None:
    """tests/server/api/test_run_batch.py runs it; here, that the flags are known."""
    from octavo_server.cli import run_batch_parser

    run_batch_parser().parse_strictly(command.split()[2:])
    is_run_by("tests/server/api/test_run_batch.py", '"run-batch", "-i"', '"-o"', '"--model"')


def of_the_download(command: str) -> None:
    """tests/server/sources/test_download.py runs it; here, that the source can be read."""
    from octavo_server.sources.uri import parse_source

    assert command.split()[3] == "--to"
    assert not isinstance(parse_source(command.split()[2]), Path)
    is_run_by("tests/server/sources/test_download.py", '"download", ', '"--to"')


def of_the_benchmarks(command: str) -> None:
    """tests/benchmarks runs each at a small size; here, that the flags are known."""
    module = importlib.import_module(command.split()[2])
    module.parser().parse_args(command.split()[3:])
    assert (ROOT / "tests" / "benchmarks" / f"test_{module.__name__.partition('.')[2]}.py").exists()


def of_the_cluster(command: str) -> None:
    cluster_parser().parse_args(command.split()[3:])


def helm(command: str) -> None:
    assert (ROOT / command.split()[3] / "Chart.yaml").exists()
    is_run_by("e2e/cluster/octavo.py", "--install", "--create-namespace", "octavo-system", "--values=-")


def kubectl(command: str) -> None:
    """e2e runs them through Model.apply, get and delete; the file that is applied must be valid."""
    verb, *rest = command.split()[1:]
    if verb == "apply":
        assert [each.resource.name for each in load_manifests([str(ROOT / rest[1])])] == ["qwen"]
    else:
        assert (verb, *rest) in {("get", "modeldeployments"), ("delete", "modeldeployment", "qwen")}
        is_run_by(f"e2e/cluster/{'__main__' if verb == 'get' else 'models'}.py", f'"{verb}", "modeldeployment')


def of_a_secret(command: str) -> None:
    """A manifest beside it names the Secret."""
    name = command.split()[4]
    assert any(f"name: {name}" in text for text in blocks("yaml"))


def of_the_plugin(command: str) -> None:
    """tests/cli/kubectl and e2e/cases/kubectl run them; here, that the flags are known."""
    words = shlex.split(command.partition("#")[0])[2:]
    parser = plugin.parser(only=words[0])
    module = importlib.import_module(f"octavo_cli.kubectl.{words[0]}")
    module.add_arguments(parser.subcommands[words[0]])
    parser.parse_args(words)
    is_run_by(
        "tests/cli/kubectl/test_plan.py" if words[0] == "plan" else "e2e/cases/kubectl/test_kubectl.py", f'"{words[0]}"'
    )


def podman(command: str) -> None:
    words = command.split()
    recipe = (ROOT / words[words.index("-f") + 1]).read_text()
    for number, word in enumerate(words):
        if word == "--build-arg":
            assert f"ARG {words[number + 1].partition('=')[0]}=" in recipe
    if "--target" in words:
        assert re.search(rf"^FROM \S+ AS {words[words.index('--target') + 1]}$", recipe, re.MULTILINE)
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", recipe, re.MULTILINE)
    assert [path for line in sources for path in line.split() if not (ROOT / path).exists()] == []


def pip(command: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"'\.\[(\w+)\]'", command)
    assert named
    assert set(named) <= set(extras)


def of_checksums(command: str) -> None:
    """tests/server/sources/test_download.py compares with what the program prints."""
    is_run_by("tests/server/sources/test_download.py", '["sha256sum", *sorted(')


CHECKS: dict[str, Callable[[str], None]] = {
    r"\./scripts/(demo|test)( tests/\w+)?": a_script,
    r"octavo (up|ps|top|chat)\b.*": of_local_mode,
    r"octavo (--version|collect-env)": that_prints,
    r"octavo serve .*": of_the_server,
    r"octavo run-batch .*": of_the_offline_batch,
    r"octavo download .*": of_the_download,
    r"LC_ALL=C; cd models/qwen && sha256sum .*": of_checksums,
    r"octavo plan .*": of_the_plan,
    r"octavo bench (serve|throughput|latency|startup|compare) .*": of_the_bench,
    r"python -m benchmarks\.\w+.*": of_the_benchmarks,
    r"python -m e2e\.cluster \w+": of_the_cluster,
    r"helm install octavo charts/octavo --namespace octavo-system --create-namespace( --values values\.yaml)?": helm,
    r"kubectl (apply|get|delete) .*": kubectl,
    r"kubectl create secret generic .*": of_a_secret,
    r"kubectl octavo .*": of_the_plugin,
    r"podman build .*": podman,
    r"(uv )?pip install .*": pip,
}


def octavo(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "octavo_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_that_is_shown_is_proven(command: str) -> None:
    checks = [check for pattern, check in CHECKS.items() if re.fullmatch(pattern, command)]

    assert len(checks) == 1, f"nothing here proves `{command}`"
    checks[0](command)


async def test_local_mode_and_the_openai_client_work_as_shown(tmp_path: Path) -> None:
    """The commands and the Python of README.md as they stand there, but for the folder and the port."""
    (tmp_path / QUICKSTART_MODEL).write_text("ok")
    up_line, ps_line, top_line, chat_line = (
        next(line for line in commands() if line.split()[:2] == ["octavo", name])
        for name in ("up", "ps", "top", "chat")
    )
    _, _, manifest, *mount = up_line.replace("DIR", str(tmp_path)).split()
    question = re.findall(r'"(.+)"', chat_line)
    flags = chat_line.partition('"')[0].split()[2:]
    code = blocks("python")[0]
    async with running_up(WITH_FAKE_SERVER, tmp_path, str(ROOT / manifest), *mount) as up:
        await up.until_ready("smollm2")
        listed = await asyncio.to_thread(octavo, *ps_line.split()[1:], XDG_STATE_HOME=str(tmp_path))
        seen = await asyncio.to_thread(octavo, *top_line.split()[1:], XDG_STATE_HOME=str(tmp_path))
        answer = await asyncio.to_thread(octavo, "chat", *flags, "--url", up.url, *question)
        program = code.replace("http://127.0.0.1:8080", up.url)
        ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True)
        await up.end()

    assert "http://127.0.0.1:8080/v1" in code
    assert up.url in listed.stdout
    assert "smollm2-0" in seen.stdout
    assert (answer.stdout, answer.returncode) == ("0 1 2 \n", 0), answer.stderr
    assert (ran.stdout, ran.returncode) == ("0 1 2 ", 0), ran.stderr


def test_manifests_and_values_that_are_shown_are_valid(tmp_path: Path) -> None:
    schema = json.loads((ROOT / "charts" / "octavo" / "values.schema.json").read_text())
    shown = [(text, yaml.safe_load(text)) for text in blocks("yaml")]
    manifests = [text for text, document in shown if document.get("kind") == "ModelDeployment"]
    values = [document for text, document in shown if text not in manifests]
    # Parts of a manifest are shown without what every manifest has.
    parts = [document for text, document in shown if set(document) == {"spec"}]
    whole = {"apiVersion": "octavo.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"}}
    for part in parts:
        values.remove(part)
        parse_model_deployment({**whole, "spec": {"model": "hf://org/name", **part["spec"]}}, creating=True)
    for number, text in enumerate(manifests):
        (tmp_path / f"{number}.yaml").write_text(text)
        load_manifests([str(tmp_path / f"{number}.yaml")])
    for each in values:
        jsonschema.validate(each, schema)

    assert manifests
    assert values


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, *(ROOT / name for name in ("ARCHITECTURE.md", "e2e/README.md"))],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", document.read_text())

    for target, heading in links:
        found = (document.parent / target) if target else document
        assert found.exists(), target
        assert not heading or heading in headings(found), f"{target}#{heading}"


def headings(document: Path) -> set[str]:
    """As a link names them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_a_link_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text()

    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name}" not in text] == []


def test_the_resources_fields_that_are_shown_are_those_of_the_schema() -> None:
    document = yaml.safe_load(next((ROOT / "crds").glob("*.yaml")).read_text())
    spec = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    refused = {name for name, field in spec.items() if "Not served yet" in field["description"]}
    text = (ROOT / "README.md").read_text()
    before, _, rest = text.partition("| field | what it does |")
    table = rest.partition("\n\n")[0]
    shown = {
        name.partition(".")[0]
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([\w.]+)`", row.split("|")[1])
    }

    assert shown == set(spec) - refused
    assert [name for name in refused if f"`{name}`" not in before] == []


def test_extras_that_are_shown_are_those_of_the_distribution() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "docs" / "install.md").read_text()

    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(extras)
    assert {
        name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`octavo ([\w ]+)`", line)
    } <= set(COMMANDS)
