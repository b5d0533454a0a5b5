"""From a configuration to an engine that is ready: weights, tokenizer, KV cache, runner, warm-up.

The one place where autos become values, because only here are the model and the machine both known. Imports torch
inside, so that the port may open first.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.engine.engine import Engine, EngineWatch, Vocabulary
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.served_model import ServedModel
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_server.errors import ConfigError, StartupError
from octavo_server.machine import read_text, resident_bytes
from octavo_server.plan.gpus import share_of
from octavo_server.plan.layout import choose_layout, rotary_bytes
from octavo_server.plan.memory import Measured, MemoryPlan, plan_memory, records_graphs
from octavo_server.plan.model_shape import served_shape
from octavo_server.plan.table import size, table
from octavo_server.plan.this_machine import gpu_overhead_bytes, this_device
from octavo_server.sources.locate import locate_model, locate_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from octavo_server.capacity import KVPlan
    from octavo_server.config import EngineConfig, ResolvedLimits
    from octavo_server.engine.startup import StartupProgress
    from octavo_server.models.config import GenerationDefaults, ModelConfig, VectorSizes
    from octavo_server.models.loader import LoadedModel
    from octavo_server.plan.gpus import Device
    from octavo_server.plan.layout import Layout
    from octavo_server.structured_output.compiler import GrammarCompiler
    from octavo_server.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Nothing compiles on a CPU: a warm-up there only touches memory and starts torch's threads.
CPU_WARM_UP_TOKENS, CPU_WARM_UP_SEQS = 16, 4
OMP_SPINS = 2000
"""Turns of a waiting OpenMP thread before it sleeps: some 50 µs, longer than from one operation to the next. libgomp's own
300,000 keep a core from whoever shares it: with one of two cores taken, a decode step is four to five times slower."""
# Of cgroup v2, then of v1.
_CGROUP_CPU_FILES = (
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine and what stands beside it."""

    engine: Engine
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    """Sampling values for what a request leaves out."""
    vectors: VectorSizes
    memory: MemoryPlan | None = None
    """What it takes of the device; None of an engine without a model."""
    resolved: Mapping[str, str | int] = field(default_factory=dict)
    """What the settings have become on this machine, for `/server_info` and result files."""
    close: Callable[[], None] = lambda: None
    """Ends what computes beside this process."""

    @property
    def served(self) -> ServedModel:
        """What the clients' side needs of it."""
        return ServedModel(
            tokenizer=self.tokenizer,
            defaults=self.defaults,
            limits=self.engine.limits,
            vectors=self.vectors,
            grammars=self.engine.vocabulary.grammars,
            resolved=self.resolved,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSide:
    """What turns a client's text into token ids and fills in what it left out; no weights, and no torch."""

    tokenizer: Tokenizer
    defaults: GenerationDefaults
    vectors: VectorSizes
    grammars: GrammarCompiler


def build_server_engine(config: EngineConfig, progress: StartupProgress) -> LoadedEngine:
    """As build_engine, for a server: what it does is noted for `/metrics`."""
    return build_engine(config, progress, keeps_records=True)


def build_engine(config: EngineConfig, progress: StartupProgress, *, keeps_records: bool = False) -> LoadedEngine:
    """Loads the model and everything around it.

    Raises:
        StartupError: with the reason that the control plane shows.
    """
    from octavo_server.models.config import load_model_config

    bound_spinning(os.environ)
    # Before seconds go into the weights.
    _chat_template(config.chat_template)
    location = locate_model(config, progress)
    locate_tokenizer(config, location, progress)
    progress.locate(location)
    model_config = load_model_config(location)
    served_shape(model_config).check_ways(config.tensor_parallel_size)
    device = resolve_device(config.device)
    # Before loading, which takes the weights from what the machine has available, but not from a cgroup's limit.
    machine = this_device(device, is_memory_needed=config.kv_cache_memory_bytes is None)
    machine = share_of(machine, config.tensor_parallel_size)
    limits = config.resolve(
        context_length=model_config.max_positions, device=device, device_memory_bytes=machine.memory_bytes
    )
    layout = choose_layout(config, stored_dtype=model_config.dtype, kind=machine.kind, ways=config.tensor_parallel_size)
    progress.enter("loading_weights")
    # Beside the weights, which leave the interpreter's lock most of the time.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer") as aside:
        text = aside.submit(load_text_side, config, location)
        model = _load_model(location, config, device, progress)
    try:
        memory = _plan_memory(config, model, layout, machine)
        return _around(model, text.result(), config, limits, memory, progress, keeps_records=keeps_records)
    except BaseException:
        model.decoder.close()
        raise


def _around(
    model: LoadedModel,
    text: TextSide,
    config: EngineConfig,
    limits: ResolvedLimits,
    memory: MemoryPlan,
    progress: StartupProgress,
    *,
    keeps_records: bool,
) -> LoadedEngine:
    if config.tokenizer is not None:
        # A model's own may have a few tokens more, which nobody sends.
        _check_vocabulary(text.tokenizer, model.config)
    if memory.kv is None:
        raise StartupError("KVCacheTooSmall", memory.problem)
    progress.enter("warming_up")
    engine = _make_engine(config, limits, memory.kv, model, text, keeps_records=keeps_records)
    _log_memory(memory, model)
    return LoadedEngine(
        engine=engine,
        tokenizer=text.tokenizer,
        defaults=text.defaults,
        vectors=text.vectors,
        memory=memory,
        resolved=_resolved(limits, memory.kv, model),
        close=model.decoder.close,
    )


def load_text_side(config: EngineConfig, location: Path) -> TextSide:
    """The tokenizer and sampling defaults of the model at `location`; another tokenizer has been fetched already.

    Raises:
        StartupError: they cannot be read.
    """
    from octavo_server.models.config import GenerationDefaults, load_model_config
    from octavo_server.structured_output.compiler import GrammarCompiler
    from octavo_server.tokenizer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(
        locate_tokenizer(config, location),
        chat_template=_chat_template(config.chat_template),
        placeholder=config.load_format == "dummy",
    )
    model = load_model_config(location)
    defaults = model.generation if config.generation_config == "auto" else GenerationDefaults()
    grammars = GrammarCompiler(tokenizer, vocab_size=model.vocab_size, eos_token_ids=model.eos_token_ids)
    return TextSide(tokenizer=tokenizer, defaults=defaults, vectors=model.vectors, grammars=grammars)


def bound_spinning(env: MutableMapping[str, str]) -> None:
    """Lets torch's idle threads sleep; OpenMP reads this when torch is imported. What a person has set stays."""
    if not env.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        env["GOMP_SPINCOUNT"] = str(OMP_SPINS)


def resolve_device(device: str) -> str:
    """Turns auto into the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda: torch finds no GPU here; use --device cpu, or install a torch build for it")
    if device == "auto":
        return "cuda" if has_gpu else "cpu"
    return device


def _load_model(location: Path, config: EngineConfig, device: str, progress: StartupProgress) -> LoadedModel:
    import torch

    from octavo_server.distributed.leader import load_in_parallel
    from octavo_server.models.loader import BATCH_INVARIANT, load_model

    if device == "cpu":
        # More threads than the cgroup's quota are throttled together, and each operation waits for the slowest.
        quota = cpu_quota([read_text(name) for name in _CGROUP_CPU_FILES])
        torch.set_num_threads(min(torch.get_num_threads(), quota or torch.get_num_threads()))
    load = partial(
        load_model,
        location,
        dtype=config.dtype,
        device=device,
        on_progress=progress.add_bytes,
        quantization=BATCH_INVARIANT if config.batch_invariant else config.quantization,
        load_format=config.load_format,
    )
    try:
        model = load() if config.tensor_parallel_size == 1 else load_in_parallel(config, location, device, load)
    except torch.OutOfMemoryError as error:
        raise StartupError(
            "GPUOutOfMemory", "the weights do not fit into the GPU's memory; use a larger one"
        ) from error
    except MemoryError as error:
        raise StartupError("HostOutOfMemory", "the weights do not fit into this machine's memory") from error
    if config.quantization != "none" and device == "cpu":
        # The compiled kernels have threads of their own, and torch's would spin on the same cores.
        torch.set_num_threads(1)
    return model.keeping(config.kv_cache_dtype)


def _check_vocabulary(tokenizer: Tokenizer, model: ModelConfig) -> None:
    if tokenizer.vocab_size > model.vocab_size:
        raise StartupError(
            "SpecInvalid",
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model's vocabulary {model.vocab_size:,}; "
            f"they do not belong together, so choose another --tokenizer",
        )


def _plan_memory(config: EngineConfig, model: LoadedModel, layout: Layout, machine: Device) -> MemoryPlan:
    shape = served_shape(model.config)
    measured = Measured(weight_bytes=model.num_weight_bytes)
    if machine.kind == "gpu":
        own = gpu_overhead_bytes(model.num_weight_bytes + rotary_bytes(shape))
        measured = replace(measured, overhead_bytes=max(own, model.other_overhead_bytes))
    return plan_memory(shape, layout, machine, config, measured)


def _make_engine(
    config: EngineConfig,
    limits: ResolvedLimits,
    plan: KVPlan,
    model: LoadedModel,
    text: TextSide,
    *,
    keeps_records: bool,
) -> Engine:
    from octavo_kernels.compilations import CompileWatch
    from octavo_server.engine.cuda_graphs import CudaGraphRecorder
    from octavo_server.engine.model_runner import DecoderRunner

    runner = DecoderRunner(model.decoder, model.kv_cache_spec(plan.num_blocks, config.block_size), config.logprobs_mode)
    is_cpu = model.backend.device.type == "cpu"
    overlaps = overlaps_steps(config, is_cpu=is_cpu)
    if overlaps or not is_cpu:
        runner.keep_resident(limits.max_num_seqs, plan.max_model_len)
    runner.warm_up(
        CPU_WARM_UP_TOKENS if is_cpu else limits.max_num_batched_tokens,
        CPU_WARM_UP_SEQS if is_cpu else limits.max_num_seqs,
    )
    if records_graphs(config, kind="cpu" if is_cpu else "gpu", ways=config.tensor_parallel_size):
        runner.record_graphs(CudaGraphRecorder(), limits.max_num_seqs)
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=plan.max_model_len,
            long_prefill_token_threshold=limits.long_prefill_token_threshold,
            has_fixed_pieces=config.batch_invariant,
            policy=SchedulingPolicy(config.scheduling_policy),
            eos_token_ids=frozenset(model.config.eos_token_ids),
            overlaps=overlaps,
        ),
        KVCacheManager(
            num_blocks=plan.num_blocks,
            block_size=config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
        ),
    )
    return Engine(
        scheduler=scheduler,
        runner=runner,
        vocabulary=Vocabulary(tokens=text.tokenizer, size=model.config.vocab_size, grammars=text.grammars),
        keeps_records=keeps_records,
        seed=config.seed,
        watch=EngineWatch(check=model.decoder.check, compiled=CompileWatch().take),
    )


def overlaps_steps(config: EngineConfig, *, is_cpu: bool) -> bool:
    """Whether the next step is launched before the last has come back."""
    return not is_cpu if config.overlap_steps == "auto" else config.overlap_steps == "on"


def _resolved(limits: ResolvedLimits, plan: KVPlan, model: LoadedModel) -> dict[str, str | int]:
    return {
        "architecture": model.config.architecture,
        "device": model.backend.device.type,
        "kernels": _kernels(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "kv_dtype": str(model.kv_dtype).removeprefix("torch."),
        "weight_bytes": model.num_weight_bytes,
        "kv_cache_bytes": plan.total_bytes,
        "num_blocks": plan.num_blocks,
        "block_size": plan.shape.block_size,
        **asdict(limits),
        "max_model_len": plan.max_model_len,
    }


def _kernels(model: LoadedModel) -> str:
    return str(getattr(model.backend, "description", model.backend.name))


def _log_memory(memory: MemoryPlan, model: LoadedModel) -> None:
    logger.info(
        "memory, with %s kernels:\n%s\nidle memory of the engine's process: %s",
        _kernels(model),
        table(memory),
        size(resident_bytes()),
    )


def _chat_template(given: str | None) -> str | None:
    """The template's source: the file that `given` names, or `given` itself where it is one."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --chat-template {given}: {error}") from error


def cpu_quota(limits: list[str]) -> int | None:
    """Processors that the cgroup allows, at least 1; None without a limit.

    `limits` are the texts of cgroup v2's cpu.max ("200000 100000", "max 100000") and v1's quota and period.
    """
    unified, quota, period = limits
    if not unified:
        unified = f"{quota} {period}"
    parts = unified.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        return None
    return max(1, int(parts[0]) // int(parts[1]))
