"""What can be set, in one place: every flag of `octavo serve` and every argument of `LLM(...)` is a field here.

A field's docstring is its help text. Only what works now is a field; a flag of the contract that is not served yet is
named in `flags.NOT_SUPPORTED_YET` and refused there. `None` means "auto"; `resolve()` turns every auto into a value
once the model and the machine are known, and returns a new object. Nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, TypeVar

from octavo_server.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

TOOL_CALL_PARSERS = (
    "auto",
    "none",
    "hermes",
    "llama3_json",
    "mistral",
    "deepseek_v3",
    "qwen3_coder",
    "generic",
    "qwen",
    "qwen25",
    "qwen3_xml",
    "llama3",
    "llama4_json",
    "deepseekv3",
    "deepseek_v31",
    "deepseek_r1",
)
REASONING_PARSERS = (
    "auto",
    "none",
    "think",
    "deepseek_r1",
    "mistral",
    "granite",
    "qwen3",
    "deepseek_v3",
    "glm45",
    "hunyuan_a13b",
    "olmo3",
    "step3",
)
"""The names of `chat_output.formats`; a test holds them together."""

_GPU_BATCHED_TOKENS, _GPU_SEQS = 8192, 1024
_SMALL_BATCHED_TOKENS, _SMALL_GPU_SEQS, _CPU_SEQS = 2048, 256, 128
_CPU_PREFILL_TOKENS = 128
_LARGE_GPU_BYTES = 70 * 2**30


def setting(
    default: T,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    parse: Callable[[str], object] | None = None,
) -> T:
    """A field with its range; `parse` reads its text where the type alone does not say how."""
    return field(default=default, metadata={"min": minimum, "max": maximum, "parse": parse})


def read_checksum(text: str) -> str:
    """Takes sha256:HEX alone.

    Raises:
        ConfigError: it is something else.
    """
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise ConfigError(f"{text[:100]!r} is no checksum; write sha256: and 64 digits or letters a to f")
    return text


def human_int(text: str) -> int:
    """Reads 8192, 32k (32 000), 32K (32 768), 1.5M and the like, as vLLM does: small letters are powers of 1000."""
    scale = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 0)
    try:
        return int(float(text[:-1]) * scale) if scale else int(text)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{text!r} is not a whole number such as 8192, 32k (32,000) or 32K (32,768)") from error


def human_int_or_auto(text: str) -> int | None:
    """`human_int`, or None for "auto"."""
    return None if text == "auto" else human_int(text)


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """A reader of one of many names."""

    def read(text: str) -> str:
        if text not in names:
            raise ConfigError(f"{text[:100]!r} is none of {', '.join(names)}")
        return text

    return read


KV_CACHE_DTYPES_OF_OTHERS = {
    "fp8_e5m2": "it has a bit of mantissa less than fp8 (e4m3) and saves no more",
    "fp8_inc": "it is of Gaudi chips",
    "fp8_ds_mla": "it is of DeepSeek's latent attention, whose models are not served",
    "fp8_per_token_head": "scales are of layers, not of tokens",
    "int8_per_token_head": "scales are of layers, not of tokens",
    "int4_per_token_head": "8 bits are the fewest",
    "nvfp4": "8 bits are the fewest",
    "int8": "the 8 bits that are kept are those of fp8",
}
"""Names that vLLM or the resource has, and why they are not served."""


def read_kv_cache_dtype(text: str) -> str:
    """With vLLM's other name of fp8; its further ones are refused by name."""
    if text in ("float16", "bfloat16"):
        raise ConfigError(
            f"{text} is what auto takes from the activations; leave it out, and use --dtype {text} for both"
        )
    if text in KV_CACHE_DTYPES_OF_OTHERS:
        reason = KV_CACHE_DTYPES_OF_OTHERS[text]
        raise ConfigError(f"{text} is not supported yet in this version of Octavo: {reason}; use fp8 or auto")
    return "fp8" if text == "fp8_e4m3" else text


def origin(text: str) -> str:
    """Reads an origin as browsers send it, such as https://chat.example:8443, or * for all.

    Raises:
        ConfigError: it can never match.
    """
    if text != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s@]+", text) is None:
        raise ConfigError(f"{text[:200]!r} is no origin; write it as browsers send it, https://HOST[:PORT], or *")
    return text


LogprobsMode = Literal["raw", "processed"]


def read_logprobs_mode(text: str) -> str:
    """With vLLM's names of the two modes that are served."""
    if text in ("raw_logits", "processed_logits"):
        raise ConfigError(f"{text} is not supported, log-probabilities are; use raw or processed")
    return text.removesuffix("_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the engine is built from: the model, its memory and its limits."""

    model: str
    """A local folder with config.json and safetensors files, a GGUF file, a name on the Hugging Face hub (ORG/NAME or
    ORG/NAME/FILE.gguf), or where else it is fetched from: https://, s3://, gs:// or oci://."""

    revision: str | None = setting(None)
    """Branch, tag or commit of a model on the hub. None: its main branch."""

    download_dir: str | None = setting(None)
    """Folder that models are fetched into, one below it for each. None: the hub's own cache, and ~/.cache/octavo/models
    for all else."""

    weight_files: tuple[str, ...] = setting(())
    """Patterns of the weight files to fetch, such as 'model-*.safetensors'; configuration and tokenizer always come.
    Default: *.safetensors, or *.gguf where there are none."""

    model_checksum: str | None = setting(None, parse=read_checksum)
    """sha256:HEX that the model must have: of its one file; of an artifact's manifest; of several files what `sha256sum
    FILES | sha256sum` prints, names in order. None: whatever comes is served."""

    tokenizer: str | None = setting(None)
    """Where the tokenizer and the chat template come from: a local folder, a GGUF file, or a name on the Hugging Face
    hub, ORG/NAME[@REVISION]. None: the model's own."""

    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = setting("auto")
    """Which files hold the weights. auto: a .gguf file where the model is one, else safetensors. dummy: none; random
    weights of the shapes that the configuration says, to size memory and measure speed (answers are nonsense)."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto")
    """Type of weights and activations. auto: the checkpoint's own on a GPU; float32 on a CPU, which computes it fastest
    unless it has bfloat16 units."""

    quantization: Literal["none", "int8", "int4", "fp8"] = setting("none")
    """Keep linear layers in few bits. int8, int4: the small blocks of a GGUF file (Q4_0, Q4_1, Q8_0) stay as they are
    stored, anything else is rounded to that many bits, an output head to 8; a CPU computes them with 8-bit integers, a
    GPU in the dtype. fp8: 8-bit floats (e4m3), a scale for each output and each token, on GPUs of compute capability
    8.9 or newer, the output head exact. none: exact, in the dtype."""

    batch_invariant: bool = setting(False)
    """Compute so that a request's tokens and log-probabilities have the same bits alone and in any batch, slower: linear
    layers by one kernel with one tile, attention cut by a sequence's own length, prompts cut at the multiples of
    --long-prefill-token-threshold. Needs --no-enable-prefix-caching, --quantization none and one process; a request that was preempted is
    computed again from its tokens, which rounds differently."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto")
    """Where to compute. auto: the first GPU where there is one, else the CPU."""

    max_model_len: int | None = setting(None, minimum=1, parse=human_int_or_auto)
    """Tokens of prompt and output together, 1 or more; 32k is 32,000 and 32K is 32,768. auto: the context that the model
    was trained for, or as much of it as the KV cache has room for."""

    max_num_seqs: int | None = setting(None, minimum=1, parse=human_int_or_auto)
    """Sequences that run at once, 1 or more. auto: 1,024 on a GPU of 70 GiB or more, 256 on a smaller one, 128 on a CPU:
    more only makes each slower."""

    max_num_batched_tokens: int | None = setting(None, minimum=1, parse=human_int_or_auto)
    """Tokens computed in one step, 1 or more; a longer prompt is computed in chunks. auto: 8,192 on a GPU of 70 GiB or
    more, else 2,048: enough to fill the machine without stalling streams."""

    long_prefill_token_threshold: int | None = setting(None, minimum=1, parse=human_int_or_auto)
    """Tokens of one prompt in a step while other requests run or wait, 1 or more: so long may their streams pause. A
    quarter as many of one whose log-probabilities are asked for. auto: a quarter of --max-num-batched-tokens, on a CPU
    at most 128."""

    block_size: int = setting(16, minimum=1, maximum=1024)
    """Tokens in one KV cache block, 1 to 1,024. 16: at 300-token sequences it wastes 2.7 %, 64 would waste 10.7 %."""

    num_gpu_blocks_override: int | None = setting(None, minimum=2, parse=human_int_or_auto)
    """KV cache blocks, on any device, 2 or more. auto: as many as the memory for them holds."""

    kv_cache_memory_bytes: int | None = setting(None, minimum=1, parse=human_int_or_auto)
    """Bytes for the KV cache; wins over --gpu-memory-utilization. auto: on a CPU the least of what --max-num-seqs times
    --max-model-len needs, 4 GiB, and 40 % of the memory that is left beside the weights."""

    gpu_memory_utilization: float = setting(0.9, minimum=0.05, maximum=1.0)
    """Share of the GPU's memory that weights, activations and KV cache may take together, 0.05 to 1. 0.9 leaves room for
    the driver. Without meaning on a CPU."""

    enable_prefix_caching: bool = setting(True)
    """Keep the KV blocks of finished requests and reuse them for prompts that begin alike. On: it costs nothing when
    there are no hits."""

    scheduling_policy: Literal["fcfs", "priority", "cache-aware"] = setting("fcfs")
    """Order of the waiting requests: fcfs by arrival; priority by the request's field `priority` (lower first);
    cache-aware by the longest prefix hit, without starving anyone."""

    kv_cache_dtype: Literal["auto", "fp8"] = setting("auto", parse=read_kv_cache_dtype)
    """Type of the KV cache. auto: that of the activations, on a CPU with --quantization float16. fp8, or fp8_e4m3: 8-bit
    floats on GPUs, so that twice the tokens fit as in 16 bits; keys and values are rounded to 3 bits of mantissa."""

    enforce_eager: bool = setting(False)
    """Launch every decode step operation by operation instead of as a CUDA graph that was recorded when the engine
    started: a faster start, some memory more for the cache, and slower decoding. Graphs are of one GPU; a CPU, and a model
    on several GPUs, compute without."""

    overlap_steps: Literal["auto", "on", "off"] = setting("auto")
    """Decide and launch a step before the one before it has come back, so that the device need not wait for the host; a
    token that ends its output is then seen one step late. auto: on GPUs on, also of several, elsewhere off: on a CPU a
    step is over when it is launched, and nothing is gained."""

    tensor_parallel_size: int = setting(1, minimum=1, parse=human_int)
    """Processes that share one model, each with a part of heads, of the MLP and of the vocabulary, 1 or more: one a GPU, or,
    to try it, on one CPU. The model's heads must be divisible by it."""

    seed: int = setting(0, minimum=0, maximum=2**63 - 1)
    """Start of the random numbers of requests that bring no seed of their own, 0 or more. 0: runs can be repeated."""

    chat_template: str | None = setting(None)
    """A file with a Jinja chat template, or the template itself. None: the one that comes with the model."""

    generation_config: Literal["auto", "octavo"] = setting("auto")
    """Where sampling defaults come from. auto: the model's generation_config.json; octavo: OpenAI's (temperature 1,
    top_p 1)."""

    logprobs_mode: Literal["raw", "processed"] = setting("raw", parse=read_logprobs_mode)
    """What log-probabilities are of. raw: the model's own distribution, as evaluation needs; processed: what tokens are
    drawn from, after biases, penalties, masks, temperature, top-k, top-p and min-p. vLLM's raw_logprobs and
    processed_logprobs are understood."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.batch_invariant and self.enable_prefix_caching:
            raise ConfigError(
                "--batch-invariant: what the prefix cache holds decides how much of a prompt is computed at once; "
                "add --no-enable-prefix-caching"
            )
        if self.batch_invariant and self.quantization != "none":
            raise ConfigError(
                f"--batch-invariant with --quantization {self.quantization}: it is not proven for weights of few bits; "
                "use --quantization none"
            )
        if self.batch_invariant and self.tensor_parallel_size > 1:
            raise ConfigError(
                f"--batch-invariant with --tensor-parallel-size {self.tensor_parallel_size}: sums over several processes "
                "are not proven to be invariant; use 1"
            )

    def resolve(self, *, context_length: int, device: str, device_memory_bytes: int) -> ResolvedLimits:
        """Turns the limits' autos into values; `context_length` is what the model was trained for, in tokens.

        Raises:
            ConfigError: --max-model-len is beyond the model's context.
        """
        if self.max_model_len is not None and self.max_model_len > context_length:
            raise ConfigError(
                f"--max-model-len {self.max_model_len} is more than the {context_length} tokens that the model was "
                f"trained for; use {context_length} or less"
            )
        large = device != "cpu" and device_memory_bytes >= _LARGE_GPU_BYTES
        seqs = _GPU_SEQS if large else _CPU_SEQS if device == "cpu" else _SMALL_GPU_SEQS
        tokens = self.max_num_batched_tokens or (_GPU_BATCHED_TOKENS if large else _SMALL_BATCHED_TOKENS)
        share = max(1, tokens // 4)
        return ResolvedLimits(
            max_model_len=self.max_model_len or context_length,
            max_num_seqs=self.max_num_seqs or seqs,
            max_num_batched_tokens=tokens,
            long_prefill_token_threshold=self.long_prefill_token_threshold
            or (min(share, _CPU_PREFILL_TOKENS) if device == "cpu" else share),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedLimits:
    """The limits without an auto."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the HTTP server listens, protects itself and ends."""

    host: str = setting("0.0.0.0")
    """Address to listen on. 0.0.0.0: all of them, as a pod needs."""

    port: int = setting(8000, minimum=0, maximum=65535)
    """TCP port, 0 to 65,535; 0 takes a free one and logs it."""

    served_model_name: tuple[str, ...] = setting(())
    """Names that clients may give as `model`; repeatable, or several after one flag. None given: the MODEL argument
    itself, for a file its name without .gguf."""

    api_key: tuple[str, ...] = setting(())
    """Keys of which a client must send one as `Authorization: Bearer`; repeatable, comma-separated in OCTAVO_API_KEY.
    None given: no key is needed. /health, /ready, /startup and /metrics stay open."""

    data_dir: str | None = setting(None)
    """Folder for files and batches (/v1/files, /v1/batches), made where it is missing; one server a folder. What is in it
    survives restarts. None: those endpoints answer 404."""

    max_stored_files: int = setting(1000, minimum=1, parse=human_int)
    """Files that --data-dir holds, 1 or more, and as many batches; a further file is refused, for a further batch the
    oldest that has ended is dropped."""

    max_stored_bytes: int = setting(10 * 2**30, minimum=1, parse=human_int)
    """Bytes that --data-dir holds, 1 or more; beyond it nothing is taken and batches wait. 10 GiB: fifty of the largest
    uploads."""

    max_stored_age: int = setting(30 * 86400, minimum=1, parse=human_int)
    """Seconds, 1 or more, for which files are kept, and batches after their end. 30 days, as OpenAI keeps them."""

    max_upload_bytes: int = setting(200 * 2**20, minimum=1, parse=human_int)
    """Bytes of one uploaded file, 1 or more. 200 MiB: OpenAI's limit for batches."""

    max_batch_lines: int = setting(50_000, minimum=1, parse=human_int)
    """Requests in one batch, 1 or more. 50,000: OpenAI's limit."""

    max_batch_concurrency: int = setting(32, minimum=1, parse=human_int)
    """Requests of batches that run at once, 1 or more, at most --max-num-seqs; a quarter of it beside live requests, and
    none begins while one of those waits. 32: most of the throughput of a large batch."""

    allowed_origins: tuple[str, ...] = setting((), parse=origin)
    """Origins of web pages whose scripts may call this server from a browser (CORS), such as https://chat.example; * for
    all of them; repeatable. None given: none may, as browsers see to."""

    shutdown_timeout: float = setting(30.0, minimum=0, maximum=86400)
    """Seconds, 0 to 86,400, that running requests have to finish after SIGTERM. 30: Kubernetes' usual grace."""

    max_num_queued_reqs: int = setting(1024, minimum=1, parse=human_int)
    """Requests that may wait for the engine, 1 or more; further ones get 429. 1,024: minutes of work on any machine."""

    stall_timeout: float = setting(300.0, minimum=1, maximum=86400)
    """Seconds, 1 to 86,400, without a finished step (or, while loading, without progress) after which /health says 503
    and Kubernetes restarts the pod. 300: the longest step of a large model on a slow CPU is well below."""

    max_request_bytes: int = setting(64 * 2**20, minimum=1024, parse=human_int)
    """Bytes of a request's body, 1,024 or more; a larger one gets 413. 64 MiB: room for pictures in messages."""

    tool_call_parser: str = setting("auto", parse=one_of(TOOL_CALL_PARSERS))
    """How the model writes tool calls: hermes, llama3_json, mistral, deepseek_v3, qwen3_coder, generic, or another name
    for one of them. auto: what its chat template tells; where that tells nothing, tools with tool_choice auto are
    refused. none: refuse them. Forced calls need none."""

    reasoning_parser: str = setting("auto", parse=one_of(REASONING_PARSERS))
    """How the model marks its reasoning, which clients then get apart from the answer: think (<think> pairs), deepseek_r1
    (the same, and an answer begins inside), mistral, granite, or another name for one of them. auto: what its chat
    template tells. none: reasoning stays in the answer."""

    engine_process: Literal["auto", "in", "out"] = setting("auto")
    """Where the engine runs. in: on a thread of the serving process; out: in a process of its own, so that HTTP and the
    engine's Python never wait for each other. auto: out where there may be a GPU, in on a CPU, whose cores two processes
    would fight over."""

    max_stored_responses: int = setting(1024, minimum=0, parse=human_int)
    """Responses of /v1/responses that can be asked for again, 0 or more, in memory; the oldest go first. 1,024: hours of
    a few people's conversations."""

    max_stored_responses_bytes: int = setting(256 * 2**20, minimum=0, parse=human_int)
    """Bytes of JSON of stored responses, 0 or more. 256 MiB: beside a model's weights that is little."""

    max_stored_responses_age: int = setting(24 * 3600, minimum=1, maximum=10**9, parse=human_int)
    """Seconds, 1 to 1,000,000,000, after which a stored response is dropped. A day: conversations go on the next morning."""

    routing_tag: str | None = setting(None)
    """NAMESPACE/NAME/POD under which a gateway finds this server. Ids of responses then end in digests of both parts, so
    that a gateway sends what is asked about them here. None: ids end in nothing."""

    ssl_certfile: str | None = setting(None)
    """PEM file with the certificate to serve HTTPS with. None: plain HTTP."""

    ssl_keyfile: str | None = setting(None)
    """PEM file with the key of --ssl-certfile. None: the key stands in the same file."""

    log_level: Literal["debug", "info", "warning", "error"] = setting("info")
    """Least severity that is logged. info: one line per change of life, none per request."""

    otlp_traces_endpoint: str | None = setting(None)
    """Where to send traces, such as http://collector:4318/v1/traces (OpenTelemetry's OTLP over HTTP): one span a generation
    request, without its text. Needs octavo[otel]. None: no traces."""

    enable_log_requests: bool = setting(False)
    """Log one line a finished request: method, path, status, seconds and its id; never its text. Off: it is per request."""

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(config: EngineConfig | ServerConfig) -> None:
    """Refuses a value outside its field's range or choices, naming the flag, the value and the range.

    Raises:
        ConfigError: always with the remedy.
    """
    for item in fields(config):
        value, low, high = getattr(config, item.name), item.metadata.get("min"), item.metadata.get("max")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        flag = "--" + item.name.replace("_", "-")
        if low is not None and not value >= low:
            raise ConfigError(f"{flag} is {value}, it must be at least {low:g}")
        if high is not None and not value <= high:
            raise ConfigError(f"{flag} is {value}, it must be at most {high:g}")
