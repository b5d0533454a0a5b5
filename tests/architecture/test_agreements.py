"""What the packages write down for themselves instead of importing from each other: both sides must say the same."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from octavo_gateway import kube_objects, load_poller
from octavo_gateway.config import GatewayConfig
from octavo_gateway.endpoints import Model, Replica, table_of
from octavo_gateway.stored_responses import Place, find_place
from octavo_operator.api import reasons
from octavo_operator.api.engine import (
    DTYPES,
    FIELD_OF_FLAG,
    KV_CACHE_DTYPES,
    NOT_SERVED_KV_CACHE_DTYPES,
    QUANTIZATIONS,
    RESERVED_FLAGS,
)
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.autoscaling import gateway_held, scraper
from octavo_operator.desired import credentials, engine_args, names
from octavo_operator.desired.pod import PodSettings, pod_template
from octavo_operator.metrics_adapter import store
from octavo_operator.observed import Startup
from octavo_operator.probe import parse_startup
from octavo_server import cli
from octavo_server.api import life
from octavo_server.api.responses_store import routing_digests
from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import ConfigError
from octavo_server.flags import NOT_SUPPORTED_YET, settings_of
from octavo_server.sources import uri

ROOT = Path(__file__).resolve().parents[2]


def _defaults(config: type) -> dict[str, object]:
    assert dataclasses.is_dataclass(config)
    return {field.name: field.default for field in dataclasses.fields(config)}


def test_everybody_dials_the_port_that_the_server_opens() -> None:
    port = _defaults(ServerConfig)["port"]

    assert {engine_args.SERVER_PORT, scraper.SERVER_PORT, kube_objects.SERVER_PORT} == {port}


def test_the_operator_asks_gateways_on_their_internal_port() -> None:
    assert _defaults(GatewayConfig)["internal_port"] == gateway_held.GATEWAY_INTERNAL_PORT


def test_operator_and_gateway_disbelieve_the_same_pressure() -> None:
    assert load_poller.MAX_VALUE == store.MAX_PRESSURE


def test_operator_and_gateway_know_the_same_labels() -> None:
    assert kube_objects.MODEL_LABEL == names.NAME_LABEL
    assert kube_objects.REVISION_LABEL == names.REVISION_LABEL
    assert kube_objects.POD_SELECTOR == names.ALL_OBJECTS_SELECTOR
    assert (kube_objects.SERVER_CONTAINER, kube_objects.SERVER_PORT_NAME) == (names.CONTAINER, names.PORT_NAME)


_REPEATED = ("event.reason", "news.failure.reason", "said['reason']")
"""What the engine's process said, or another rank's, which had it from a literal."""


def _startup_reasons() -> set[str]:
    """First arguments of every `StartupError(…)` in the server's sources."""
    found = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("StartupError") and node.args:
                first = node.args[0]
                if ast.unparse(first) in _REPEATED:
                    continue
                assert isinstance(first, ast.Constant), f"{path}: a reason must be a literal: {ast.unparse(node)}"
                found.add(str(first.value))
    return found


def test_the_operator_knows_every_reason_that_a_server_gives() -> None:
    """One that it does not know would be shown as a crash."""
    given = _startup_reasons()

    assert len(given) > 4
    assert given <= reasons.SERVER_REASONS


def test_the_servers_give_every_reason_that_only_they_can_know() -> None:
    assert _startup_reasons() | {"EngineCrashed", "SpecInvalid"} >= reasons.SERVER_REASONS


def test_the_operator_reads_what_startup_says() -> None:
    now = 0.0
    progress = StartupProgress(lambda: now)
    progress.enter("downloading", "from the hub")
    progress.add_bytes(0, 900)
    now = 2.0
    progress.add_bytes(400, 900)
    now = 4.0

    told = parse_startup(dict(life.startup_answer(progress)))

    assert told == Startup(
        stage="downloading",
        done_bytes=400,
        total_bytes=900,
        bytes_per_second=100,
        idle_s=2.0,
        stage_seconds={"starting": 0.0},
        message="from the hub",
    )


def test_the_operator_reads_what_load_says() -> None:
    described = next(each for each in life.ENDPOINTS if each.path == "/load").answers[200].content["application/json"]
    fields = {name: False if name == "draining" else 7 for name in described["properties"]}

    told = dataclasses.asdict(scraper.parse_load(fields, at=7.0))

    assert told == {**fields, "at": 7.0}


_EVERY_FLAG = {
    "model": "hf://org/name@main",
    "source": {"checksum": "sha256:" + "a" * 64, "allow": ["*.safetensors"]},
    "cache": {"type": "NodeLocal", "size": "1Gi", "storageClassName": "local"},
    "servedNames": ["a", "b"],
    "resources": {"gpu": {"count": 2}},
    "engine": {
        "maxModelLen": 4096,
        "maxNumSeqs": 8,
        "gpuMemoryUtilization": "0.8",
        "dtype": "bfloat16",
        "quantization": "int8",
        "kvCacheDtype": "fp8",
        "prefixCaching": False,
    },
}
"""A spec that renders every flag that one can."""


def _rendered_flags() -> set[str]:
    manifest = {"apiVersion": "octavo.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"}}
    resource = parse_model_deployment({**manifest, "spec": _EVERY_FLAG})
    images = PodSettings(image="a", image_cpu="b", image_rocm="c")
    (container,) = pod_template(resource, images)["spec"]["containers"]
    return {argument.split("=")[0] for argument in container["args"] if argument.startswith("--")}


def test_every_rendered_argument_is_a_flag_of_octavo_serve() -> None:
    flags = {setting.flag for config in (EngineConfig, ServerConfig) for setting in settings_of(config)}

    used = _rendered_flags()

    assert {"--max-model-len", "--revision", "--served-model-name", "--model-checksum", "--weight-files"} <= used
    assert used - {"--no-enable-prefix-caching"} <= flags
    assert "--enable-prefix-caching" in flags or "--no-enable-prefix-caching" in flags


def test_what_a_field_renders_nobody_sets_beside_it() -> None:
    assert _rendered_flags() - {"--device"} <= {*RESERVED_FLAGS, *FIELD_OF_FLAG}


def test_what_the_resource_calls_served_the_server_takes_and_nothing_else() -> None:
    """Whoever teaches the server one more learns here that the resource still refuses it."""
    settings = {setting.name: setting for setting in settings_of(EngineConfig)}

    assert {*QUANTIZATIONS} - {""} == {*settings["quantization"].choices} - {"none"}
    assert {*DTYPES} == {*settings["dtype"].choices}
    assert {*KV_CACHE_DTYPES} == {*settings["kv_cache_dtype"].choices}
    for name in NOT_SERVED_KV_CACHE_DTYPES:
        with pytest.raises(ConfigError, match="not supported yet"):
            settings["kv_cache_dtype"].read(name, "--kv-cache-dtype")
    assert {"--enable-lora", "--speculative-config"} <= NOT_SUPPORTED_YET


@pytest.mark.parametrize("flag", [*RESERVED_FLAGS, *FIELD_OF_FLAG])
def test_a_refused_argument_is_one_of_the_server_which_takes_no_other_spelling(flag: str) -> None:
    parser = cli.serve_parser()
    value = [] if "enable" in flag else ["1"]

    parser.parse_strictly(["m", flag, *value])

    for other in (flag[:-1], flag.replace("-", "_").replace("__", "--")):
        if other != flag:
            with pytest.raises(ConfigError, match="unknown flag"):
                parser.parse_strictly(["m", other, *value])


def test_a_gateway_finds_the_replica_by_the_id_that_a_server_gave() -> None:
    replica = Replica(url="http://10.0.0.1:8000", pod="qwen-6c9-x", ready=True)
    model = Model(key="team/qwen", served_names=("qwen",), replicas=(replica,))

    tag = routing_digests("team/qwen/qwen-6c9-x")

    for kind in ("resp", "msg", "rs", "fc"):
        assert find_place(f"{kind}_0123456789abcdef01234567_{tag}", table_of([model])) == Place(
            model=model, replica=replica
        )


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("hf://org/name/a/b.gguf@v1", uri.HubModel),
        ("https://host/a/m.gguf?sig=x", uri.WebModel),
        ("https://host/", uri.WebModel),
        ("s3://bucket/m", uri.BucketModel),
        ("gs://bucket/m/", uri.BucketModel),
        ("oci://registry:5000/org/m:v1", uri.Artifact),
    ],
)
def test_what_the_resource_takes_the_server_can_read(model: str, kind: type) -> None:
    manifest = {"apiVersion": "octavo.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"}}

    spec = parse_model_deployment({**manifest, "spec": {"model": model}}).spec

    assert isinstance(uri.parse_source(engine_args.parse_source(spec.model).location), kind)


def test_the_server_reads_the_credentials_that_the_operator_gives() -> None:
    texts = "".join(path.read_text() for path in (ROOT / "server" / "octavo_server" / "sources").glob("*.py"))
    given = {*credentials.TOKEN_VARIABLE.values(), *credentials.NEEDED["gs"], *credentials.NEEDED["oci"]}

    assert [name for name in given if name not in texts] == []


def test_the_chart_carries_the_crd_itself() -> None:
    source = (ROOT / "crds" / "modeldeployments.octavo.dev.yaml").read_bytes()

    assert (ROOT / "charts" / "octavo" / "files" / "crd.yaml").read_bytes() == source


@pytest.mark.parametrize("command", ["serve", "generate", "run-batch", "download", "plan", "bench"])
def test_the_composition_root_offers_what_the_server_has(command: str) -> None:
    from octavo_cli.__main__ import COMMANDS

    assert command in COMMANDS
    assert command in cli.COMMANDS
