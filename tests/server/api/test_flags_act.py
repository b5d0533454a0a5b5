"""Flags that change what a running server does, each seen to act."""

from __future__ import annotations

import datetime
import json
import logging
import shutil
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from octavo_server.api.server import listen, make_runner, make_state
from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import StartupError
from octavo_testing.server import Server, a_chat, a_completion, fake_server, real_server, write_tokenizer

COMPLETIONS = "/v1/completions"


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "tls.crt", folder / "tls.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


async def greedy_twice(server: Server) -> tuple[str, str]:
    """Two answers to a request that leaves temperature and seed out."""
    body = a_completion(max_tokens=30, ignore_eos=True)
    del body["temperature"]
    answers = [(await server.post(COMPLETIONS, body)).json["choices"][0]["text"] for _ in range(2)]
    return answers[0], answers[1]


async def test_a_certificate_serves_https(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    config = ServerConfig(host="127.0.0.1", port=0, ssl_certfile=str(certificate), ssl_keyfile=str(key))
    runner = make_runner(make_state(EngineConfig(model="m"), config))
    await runner.setup()
    try:
        port = await listen(runner, config)
        trust = ssl.create_default_context(cafile=str(certificate))
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://localhost:{port}/version", ssl=trust) as ok,
        ):
            assert ok.status == 200
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "files", [{"ssl_certfile": "/nowhere.crt"}, {"ssl_keyfile": "/nowhere.key"}], ids=["no file", "a key alone"]
)
async def test_a_certificate_that_cannot_be_read_ends_the_start(files: dict[str, str]) -> None:
    config = ServerConfig(host="127.0.0.1", port=0, **files)  # type: ignore[arg-type]  # a table of fields
    runner = make_runner(make_state(EngineConfig(model="m"), config))
    await runner.setup()
    try:
        with pytest.raises(StartupError, match="--ssl-certfile") as caught:
            await listen(runner, config)
        assert caught.value.reason == "SpecInvalid"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("enabled", [True, False])
async def test_requests_are_logged_where_asked_without_their_text(
    tokenizer_folder: Path, caplog: pytest.LogCaptureFixture, enabled: bool
) -> None:
    with caplog.at_level(logging.INFO, logger="octavo_server.api.middleware"):
        async with fake_server(tokenizer_folder, enable_log_requests=enabled) as server:
            await server.post(COMPLETIONS, a_completion("a secret text"))

    lines = [record.getMessage() for record in caplog.records if record.name == "octavo_server.api.middleware"]
    assert len(lines) == int(enabled)
    assert all(line.startswith("POST /v1/completions 200 ") and "secret" not in line for line in lines)


async def test_sampling_defaults_come_from_the_model_unless_told_otherwise(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.0}')

    async with real_server(folder) as server:
        first, second = await greedy_twice(server)
    async with real_server(folder, engine={"generation_config": "octavo"}) as server:
        third, fourth = await greedy_twice(server)

    assert first == second
    assert third != fourth


async def test_the_seed_makes_unseeded_requests_repeatable(tiny_model: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        async with real_server(tiny_model, engine={"seed": seed}) as server:
            texts.append(await greedy_twice(server))

    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("as_file", [True, False])
async def test_a_chat_template_of_ones_own_is_used(tiny_model: Path, tmp_path: Path, as_file: bool) -> None:
    template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    path = tmp_path / "own.jinja"
    path.write_text(template)

    async with real_server(tiny_model, engine={"chat_template": str(path) if as_file else template}) as server:
        ids = (await server.post("/tokenize", {"messages": a_chat("hello")["messages"]})).json["tokens"]
        text = (await server.post("/detokenize", {"tokens": ids})).json["prompt"]

    assert text == "[hello]"


async def test_another_tokenizer_and_its_template_are_used(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "other")
    (folder / "config.json").unlink()
    (folder / "chat_template.jinja").write_text("{% for message in messages %}<{{ message['content'] }}>{% endfor %}")

    async with real_server(tiny_model, engine={"tokenizer": str(folder)}) as server:
        ids = (await server.post("/tokenize", {"messages": a_chat("hello")["messages"]})).json["tokens"]
        text = (await server.post("/detokenize", {"tokens": ids})).json["prompt"]

    assert text == "<hello>"


def test_a_tokenizer_that_is_larger_than_the_model_ends_the_start(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))

    with pytest.raises(StartupError, match=r"tokens, the model's vocabulary 300; .*--tokenizer"):
        build_engine(EngineConfig(model=str(folder), tokenizer=str(tiny_model), load_format="dummy"), StartupProgress())


async def test_random_weights_need_nothing_but_the_configuration(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    body, texts = a_completion("hello", max_tokens=20, ignore_eos=True), []
    for _ in range(2):
        async with real_server(tmp_path, engine={"load_format": "dummy"}) as server:
            answer = await server.post(COMPLETIONS, body)
            texts.append(answer.json["choices"][0]["text"])
            assert answer.json["usage"]["prompt_tokens"] == len("hello")
            assert answer.json["usage"]["completion_tokens"] == 20

    assert texts[0] == texts[1]


def test_a_load_format_that_is_not_what_is_there_ends_the_start(tiny_model: Path) -> None:
    with pytest.raises(StartupError, match=r"--load-format gguf: .* holds safetensors"):
        build_engine(EngineConfig(model=str(tiny_model), load_format="gguf"), StartupProgress())


async def test_eager_is_what_every_run_on_a_cpu_is(tiny_model: Path) -> None:
    """On a GPU it is proven by the plan, which says what graphs take, and by tests of the runner."""
    texts = []
    for eager in (False, True):
        async with real_server(tiny_model, engine={"enforce_eager": eager}) as server:
            texts.append((await server.post(COMPLETIONS, a_completion())).json["choices"][0]["text"])

    assert texts[0] == texts[1]


async def test_steps_that_overlap_say_the_same(tiny_model: Path) -> None:
    texts = []
    for overlap in ("off", "on"):
        async with real_server(tiny_model, engine={"overlap_steps": overlap}) as server:
            texts.append((await server.post(COMPLETIONS, a_completion())).json["choices"][0]["text"])

    assert texts[0] == texts[1]


async def test_priorities_are_taken_where_the_policy_ranks_by_them(tiny_model: Path) -> None:
    async with real_server(tiny_model, engine={"scheduling_policy": "priority"}) as server:
        assert (await server.post(COMPLETIONS, a_completion(priority=5))).status == 200


async def test_without_prefix_caching_nothing_is_looked_up(tiny_model: Path) -> None:
    async with real_server(tiny_model, engine={"enable_prefix_caching": False}) as server:
        usages = [(await server.post(COMPLETIONS, a_completion([9] * 64))).json["usage"] for _ in range(2)]

        assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, 0]
        assert await server.metric("vllm:prefix_cache_queries_total") == 0


@pytest.mark.parametrize("engine", [{"block_size": 32}, {"max_num_batched_tokens": 16}, {"max_num_seqs": 1}])
async def test_sizes_change_nothing_about_the_answer(tiny_model: Path, engine: dict[str, int]) -> None:
    body = a_completion(list(range(40, 100)), max_tokens=20, ignore_eos=True)
    async with real_server(tiny_model) as server:
        expected = (await server.post(COMPLETIONS, body)).json["choices"][0]["text"]

    async with real_server(tiny_model, engine=engine) as server:
        assert (await server.post(COMPLETIONS, body)).json["choices"][0]["text"] == expected


@pytest.mark.parametrize(
    ("model", "name", "root"),
    [
        ("hf://org/name@v1", "org/name", "org/name"),
        ("org/name/q4.gguf", "q4", "org/name"),
        ("file:///models/a.gguf", "a", ""),
        ("/models/a", "/models/a", ""),
    ],
)
def test_a_model_is_called_by_its_place(model: str, name: str, root: str) -> None:
    state = make_state(EngineConfig(model=model), ServerConfig())

    assert (state.model_names, state.model_root) == ((name,), root)
