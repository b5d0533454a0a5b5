"""Result files hold what a later reader needs; samples of a server and of the engine alone are the same."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import aiohttp
import pytest

from octavo_server.bench.answerers import EngineAnswerer, ServerAnswerer
from octavo_server.bench.client import Target
from octavo_server.bench.plot import check_plot, picture, write_plot
from octavo_server.bench.quality import SCHEMA, cases, is_valid, take_quality
from octavo_server.bench.record import Record, Result, describe_model, write_record
from octavo_server.bench.server_facts import ask_facts
from octavo_server.bench.stats import Measure, of_rounds
from octavo_server.errors import ConfigError, OctavoError
from octavo_testing.server import NAME, real_server


def a_result(name: str = "1 clients", values: tuple[float, ...] = (1.0, 2.0, 50.0)) -> Result:
    times = Measure(unit="ms", better="lower", rounds=[[[value] for value in values]])
    return Result(name=name, measures={"ttft_ms": times, "rate": of_rounds([5.0], "tok/s", "higher")})


def test_a_record_says_on_what_it_was_measured() -> None:
    record = Record(command="bench serve", workload={"max_tokens": 3}, results=[a_result()]).as_json()

    around = record["environment"]
    assert around["versions"]["python"] == sys.version.split()[0]
    assert {"octavo", "torch", "numba", "numpy", "octavo_commit"} <= around["versions"].keys()
    assert around["cpus"] >= 1
    assert {"os", "cpu", "cpu_features", "cpu_limit", "devices"} <= around.keys()
    assert {"date", "load_average", "memory_available_mib"} <= record["circumstances"].keys()
    assert record["results"][0]["measures"]["ttft_ms"]["rounds"] == [[[1.0], [2.0], [50.0]]]
    assert json.loads(json.dumps(record)) == record


def test_a_model_is_told_by_the_hash_of_each_file(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    blob = tmp_path / "hub" / "blobs" / ("f" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"large")
    (folder / "model.safetensors").symlink_to(blob)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("not of the model")

    found = describe_model("org/name", folder)

    # The hub's cache names a large file by its hash; the others are read.
    assert found == {
        "name": "org/name",
        "revision": "abc123",
        "files": {"config.json": hashlib.sha256(b"{}").hexdigest(), "model.safetensors": "f" * 64},
    }
    assert describe_model("far/away", None) == {"name": "far/away"}
    assert describe_model("m", folder / "config.json")["files"].keys() == {"config.json"}


def test_a_hash_is_what_sha256sum_says(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(range(256)) * 100)

    said = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]

    assert describe_model("m", path)["files"] == {"m.gguf": said}


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="cannot write --json"):
        write_record(str(tmp_path / "no" / "file.json"), {})
    with pytest.raises(OctavoError, match="cannot write --plot"):
        write_plot(str(tmp_path / "no" / "file.svg"), "", [a_result()])


def test_a_picture_has_a_panel_a_measure_and_a_curve_a_level(tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    write_plot(str(path), "a <title> & more", [a_result("1 clients"), a_result("8 clients", (3.0,))])

    tree = ET.fromstring(path.read_text())
    texts = [item.text for item in tree.iter("{http://www.w3.org/2000/svg}text")]
    curves = [item.attrib["points"].split() for item in tree.iter("{http://www.w3.org/2000/svg}polyline")]

    assert {"a <title> & more", "ttft_ms (ms, log scale)", "rate (tok/s)", "1 clients", "8 clients"} <= set(texts)
    # Two corners a value; the curve ends at the top right, where all values are at or below the largest.
    assert [len(points) for points in curves] == [6, 2, 2, 2]
    assert curves[0][-1] == "410.0,40.0"


def test_a_picture_of_nothing_is_a_picture() -> None:
    ET.fromstring(picture("nothing", []))
    ET.fromstring(picture("nothing", [a_result(values=())]))


def test_another_kind_of_picture_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"run.png: the picture is SVG"):
        check_plot("run.png")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"capital": "Paris", "population": 2102650}', True),
        ('{"capital": "Paris", "population": "many"}', False),
        ('{"capital": "Paris", "population": true}', False),
        ('{"capital": "Paris"}', False),
        ('{"capital": "Paris", "population": 1, "x": 1}', False),
        ('{"capital": "Par', False),
        ("[]", False),
    ],
)
def test_an_answer_is_valid_as_jsonschema_says(text: str, valid: bool) -> None:
    import jsonschema

    try:
        jsonschema.validate(json.loads(text), SCHEMA)
        said = True
    except (jsonschema.ValidationError, json.JSONDecodeError):
        said = False
    assert (is_valid(text), said) == (valid, valid)


def test_the_long_sample_fits_into_the_context() -> None:
    lengths = {context: len(cases(context)[2].prompt) for context in (512, 8192, None)}

    assert lengths[512] <= 512
    assert 4000 < lengths[8192] == lengths[None]
    assert [case.name for case in cases(None)] == ["easy", "average", "long_context", "malformed", "structured"]


@pytest.mark.usefixtures("one_thread")
async def test_a_server_and_the_engine_alone_answer_and_score_alike(tiny_model: Path) -> None:
    from octavo_server import LLM

    async with real_server(tiny_model) as server:
        target = Target(url=server.url, model=NAME)
        facts = await ask_facts(server.session, target)
        served = await take_quality(ServerAnswerer(server.session, target), facts.context_tokens)
    alone = await take_quality(EngineAnswerer(LLM(str(tiny_model), num_gpu_blocks_override=200)), facts.context_tokens)

    for found in (served, alone):
        assert found["samples"]["malformed"].pop("error") in ("HTTP 400", "InvalidRequestError")
    assert served["samples"] == alone["samples"]
    assert all(sample["text"] for name, sample in alone["samples"].items() if name != "malformed")
    assert alone["samples"]["structured"]["valid"] in (True, False)
    # What is printed of a token's bytes may differ; their log-probabilities may not.
    assert served["probe"]["logprobs"] == pytest.approx(alone["probe"]["logprobs"], abs=2e-4)
    assert served["probe"]["perplexity"] == pytest.approx(alone["probe"]["perplexity"], rel=1e-4)


async def test_a_server_of_ours_tells_everything_of_itself(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        server.state.engine_settings = {"quantization": "none"}

        facts = await ask_facts(server.session, Target(url=server.url, model=NAME))

    assert facts.server.keys() >= {"url", "owned_by", "version", "context", "environment"}
    assert (facts.engine, facts.location, facts.context_tokens) == ({"quantization": "none"}, tiny_model, 512)
    assert facts.resolved["kernels"] == "torch"
    assert facts.resolved["num_blocks"] == 200
    assert facts.resolved["weight_bytes"] > 500_000


async def test_of_another_server_what_it_tells_is_kept(aiohttp_peer: str) -> None:
    """As llama.cpp's: no /server_info, /props instead; and it scores no prompts."""
    async with aiohttp.ClientSession() as session:
        target = Target(url=aiohttp_peer, model="anything")
        facts = await ask_facts(session, target)
        quality = await take_quality(ServerAnswerer(session, target), facts.context_tokens)

    assert facts.server == {
        "url": aiohttp_peer, "owned_by": "llamacpp", "context": 1024, "total_slots": 8, "build_info": "b1",
    }  # fmt: skip
    assert (facts.engine, facts.resolved, facts.location) == ({}, {}, None)
    assert quality["samples"]["easy"]["text"] == "Paris."
    assert quality["probe"] == {"error": "/v1/completions with echo and logprobs: HTTP 404"}


async def test_of_a_server_that_is_gone_nothing_is_known() -> None:
    async with aiohttp.ClientSession() as session:
        target = Target(url="http://127.0.0.1:9", model="m")
        facts = await ask_facts(session, target)
        quality = await take_quality(ServerAnswerer(session, target), None)

    assert facts.server == {"url": "http://127.0.0.1:9"}
    assert "Cannot connect" in quality["samples"]["easy"]["error"]
    assert "Cannot connect" in quality["probe"]["error"]
