"""A running server for tests: real sockets, the real engine, and either a tiny Llama or a fake model under it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from octavo_server.api.server import listen, make_runner
from octavo_server.api.state import ServerState
from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.engine.async_engine import AsyncEngine, EngineHost, EngineState
from octavo_server.engine.build import LoadedEngine
from octavo_server.engine.engine_thread import EngineThread
from octavo_server.engine.placement import make_host
from octavo_server.engine.startup import StartupProgress
from octavo_server.metrics import ServerMetrics
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.fake_engine import CONTEXT, POISON, VOCABULARY, FakeParts, GatedRunner, fake_engine
from octavo_testing.fake_model import FAKE_STATE_SIZE
from octavo_testing.remote_engine import RemoteEngine, remote_engine

__all__ = ["CONTEXT", "NAME", "POISON", "VOCABULARY", "FakeParts", "GatedRunner", "fake_engine"]

NAME = "tiny"

_SHAPE = 128, 2, 4, 2, 16
"""Inner size, layers, heads, key/value heads and their size."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = [
    "Kubernetes runs containers on many machines; a pod holds one or more of them.",
    "The quick brown fox jumps over the lazy dog, again and again, while the server streams tokens.",
    "Größe, naïve, 東京, Ελλάδα, привет, 🙂 and 👩‍👩‍👧 are text too.",
]


def a_tiny_model(folder: Path) -> Path:
    """A random Llama (vocabulary 512, context 512) with a byte-level tokenizer and a chat template; made once.

    Written by hand, since importing transformers takes longer than most tests here; that the architecture is computed
    rightly is not theirs to say.
    """
    if (folder / "tokenizer_config.json").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    hidden, inner, layers, heads, kv_heads, head_dim = 64, *_SHAPE
    generator = torch.Generator().manual_seed(7)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCABULARY, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (heads * head_dim, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, heads * head_dim),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: (len(shape) == 1) + 0.25 * torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(_config(hidden_size=hidden)))
    write_tokenizer(folder)
    return folder


def _config(*, hidden_size: int) -> dict[str, Any]:
    inner, layers, heads, kv_heads, head_dim = _SHAPE
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": hidden_size,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }


def write_tokenizer(
    folder: Path, *, chat_template: str = CHAT_TEMPLATE, special: Sequence[str] = (), added: Sequence[str] = ()
) -> Path:
    """tokenizer.json and tokenizer_config.json: 512 tokens, `<|im_start|>` 0 and `<|im_end|>` 1, which ends an answer.

    Args:
        folder: where to write.
        chat_template: the model's.
        special: further special tokens.
        added: further tokens that stand for their whole text and are not special.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    folder.mkdir(parents=True, exist_ok=True)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(added),
        special_tokens=["<|im_start|>", "<|im_end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS * 20, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": chat_template,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if not (folder / "config.json").exists():
        # What makes a folder a model, though nothing but its tokenizer will be read.
        (folder / "config.json").write_text(json.dumps(_config(hidden_size=FAKE_STATE_SIZE)))
    return folder


@dataclass(slots=True, kw_only=True)
class Server:
    """A server on a loopback port and a client for it."""

    url: str
    state: ServerState
    session: aiohttp.ClientSession
    runner: web.AppRunner
    fake: FakeParts | RemoteEngine | None = None

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def transports(self) -> list[asyncio.Transport]:
        """Of the connections that clients have open."""
        assert self.runner.server is not None
        found = [connection.transport for connection in self.runner.server.connections]
        return [transport for transport in found if isinstance(transport, asyncio.Transport)]

    async def post(self, path: str, body: Any, **kwargs: Any) -> Answer:
        async with self.session.post(self.url + path, json=body, **kwargs) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **kwargs: Any) -> Answer:
        async with self.session.get(self.url + path, **kwargs) as response:
            return Answer(response.status, response.headers, await response.read())

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`."""
        text = (await self.get("/metrics")).body.decode()
        return sum(value for found, value in samples(text, name) if labels.items() <= found.items())

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Lets the loop run until `condition` holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that was read whole."""

    status: int
    headers: Mapping[str, str]
    """Whatever the case of their names."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, without `[DONE]`, which must stand at the end."""
        parts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        assert parts[-1] == "[DONE]"
        return [json.loads(part) for part in parts[:-1]]


@asynccontextmanager
async def running(
    build: Callable[[StartupProgress], LoadedEngine] | EngineHost,
    *,
    fake: FakeParts | RemoteEngine | None = None,
    wait: bool = True,
    **config: Any,
) -> AsyncIterator[Server]:
    """A server over whatever `build` makes on a thread, or over a host; `config` are fields of ServerConfig."""
    server_config = ServerConfig(host="127.0.0.1", port=0, **config)
    metrics = ServerMetrics(NAME, lambda: engine.snapshot)
    engine = AsyncEngine(
        EngineThread(build) if callable(build) else build,
        on_records=metrics.record,
        max_num_queued_reqs=server_config.max_num_queued_reqs,
        stall_timeout_s=server_config.stall_timeout,
    )
    state = ServerState(config=server_config, engine=engine, metrics=metrics, model_names=(NAME,))
    runner = make_runner(state)
    await runner.setup()
    port = await listen(runner, server_config)
    engine.start()
    try:
        if wait:
            assert await engine.wait_until(EngineState.READY, EngineState.DEAD) is EngineState.READY, engine.failure
        async with aiohttp.ClientSession() as session:
            yield Server(url=f"http://127.0.0.1:{port}", state=state, session=session, runner=runner, fake=fake)
    finally:
        if fake is not None:
            fake.runner.open()
        await engine.aclose()
        await runner.cleanup()


@asynccontextmanager
async def real_server(model: Path, *, engine: dict[str, Any] | None = None, **config: Any) -> AsyncIterator[Server]:
    """The real engine over the model in `model`."""
    import torch

    # Tiny matrices gain nothing from threads, and on a busy machine their barriers cost milliseconds each.
    torch.set_num_threads(1)
    settings = {"num_gpu_blocks_override": 200, **(engine or {})}
    host = make_host(EngineConfig(model=str(model), **settings), where="in", log_level="info")
    async with running(host, **config) as server:
        yield server


@asynccontextmanager
async def fake_server(
    tokenizer_folder: Path, *, where: str = "in", blocks: int = 200, seqs: int = 8, **config: Any
) -> AsyncIterator[Server]:
    """The real engine over the fake model, whose steps a test can hold or break, `in` this process or `out` of it."""
    if where == "in":
        parts = fake_engine(load_tokenizer(tokenizer_folder), blocks=blocks, seqs=seqs)
        async with running(lambda _: parts.loaded, fake=parts, **config) as server:
            yield server
        return
    with remote_engine(tokenizer_folder, blocks=blocks, seqs=seqs) as remote:
        async with running(remote.host, fake=remote, **config) as server:
            yield server


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Samples of one metric in Prometheus text."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def a_chat(text: str = "What is a pod?", **fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **fields}


def a_completion(prompt: Any = "The quick brown", **fields: Any) -> dict[str, Any]:
    """A completions body."""
    return {"model": NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0, **fields}


def chat_text(events: list[Any], index: int = 0) -> str:
    """The joined text of one choice of a chat stream."""
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def completion_text(events: list[Any], index: int = 0) -> str:
    """The joined text of one choice of a completions stream."""
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["text"] for choice in choices)
