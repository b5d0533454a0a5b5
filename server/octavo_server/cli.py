"""The server's commands: `serve`, `generate`, `run-batch`, `download`, `plan`, `bench`, `compile`, `collect-env`. `octavo` hands them over.

Everything a person can do wrong ends here as one line on stderr and an exit status: 2 for a setting that cannot be
used, 1 for anything else. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import importlib.util
import logging
import os
import platform
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NoReturn

from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.errors import ConfigError, EngineStuckError, OctavoError, StartupError
from octavo_server.flags import FlagParser, add_config_file, add_flags, build, read_settings, settings_of
from octavo_server.logs import set_up_logging
from octavo_server.termination import write_termination_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo_server.batch.records import Counts

OF_RUN_BATCH = frozenset(
    {
        "served_model_name",
        "max_request_bytes",
        "max_batch_lines",
        "tool_call_parser",
        "reasoning_parser",
        "engine_process",
        "log_level",
    }
)
"""Settings of the server that mean something where nobody connects."""
FORCED_EXIT = 143
"""128 + SIGTERM: a second signal cut off what ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One word after `octavo`."""

    run: Callable[[Sequence[str]], int]
    help: str


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    command = COMMANDS.get(argv[0])
    if command is None:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all"
        return _fail(ConfigError(f"there is no command {argv[0]!r}; {hint}"))
    try:
        return command.run(argv[1:])
    except OctavoError as error:
        return _fail(error)


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: octavo COMMAND [ARGUMENTS]", "", *lines, "", "octavo COMMAND --help explains one."])


def serve(argv: Sequence[str]) -> int:
    """`octavo serve MODEL`: the OpenAI-compatible server of one model."""
    parser = serve_parser()
    try:
        settings = read_settings(parser.parse_strictly(argv), os.environ, EngineConfig, ServerConfig)
        engine_config, server_config = build(EngineConfig, settings), build(ServerConfig, settings)
        set_up_logging(server_config.log_level)
        return _serve(engine_config, server_config)
    except OctavoError as error:
        # In a pod the operator reads this line and shows it in the resource's status.
        write_termination_log(error.reason if isinstance(error, StartupError) else "EngineCrashed", str(error))
        if isinstance(error, EngineStuckError):
            _leave_now(_fail(error))
        raise


def serve_parser() -> FlagParser:
    """Flags of `octavo serve`."""
    parser = FlagParser(prog="octavo serve", description="Serve one model over HTTP, compatible with OpenAI's API.")
    for config in (EngineConfig, ServerConfig):
        add_flags(parser, config)
    add_config_file(parser)
    return parser


def _serve(engine_config: EngineConfig, server_config: ServerConfig) -> int:
    from octavo_server.api.server import EndNow, make_state, serve

    async def run() -> bool:
        try:
            return await serve(make_state(engine_config, server_config))
        except EndNow:
            _leave_now(FORCED_EXIT)

    if not asyncio.run(run()):
        _leave_now(0)
    return 0


def _leave_now(status: int) -> NoReturn:
    """Ends the process; the interpreter would wait for, or crash in, a thread that is inside a kernel or an import."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def generate(argv: Sequence[str]) -> int:
    """`octavo generate MODEL PROMPT…`: answers prompts without a server."""
    parser = FlagParser(prog="octavo generate", description="Answer prompts without a server.")
    add_flags(parser, EngineConfig)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="one or more prompts")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens of each answer at most (default: 256)")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the model's own)")
    parser.add_argument("--raw", action="store_true", help="continue the prompt instead of asking it as a chat message")
    values = parser.parse_strictly(argv)
    settings = read_settings(values, os.environ, EngineConfig)
    config = build(EngineConfig, settings)
    if not values.prompts:
        raise ConfigError("PROMPT is missing: octavo generate MODEL 'What is Kubernetes?'")
    set_up_logging("warning")
    from dataclasses import replace

    from octavo_server.llm import LLM

    llm = LLM.from_config(config)
    params = replace(llm.get_default_sampling_params(), max_tokens=values.max_tokens)
    if values.temperature is not None:
        params = replace(params, temperature=values.temperature)
    if values.raw:
        outputs = llm.generate(values.prompts, params, use_tqdm=False)
    else:
        outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in values.prompts], params, use_tqdm=False)
    for output in outputs:
        print(output.outputs[0].text)
    return 0


def run_batch(argv: Sequence[str]) -> int:
    """`octavo run-batch -i IN.jsonl -o OUT.jsonl --model MODEL`: 0 where every line was answered, 1 where some failed."""
    values = run_batch_parser().parse_strictly(argv)
    settings = read_settings(values, os.environ, EngineConfig, ServerConfig)
    if "model" not in settings:
        raise ConfigError("--model is missing: a folder, a GGUF file or a name on the hub")
    for name in ("input_file", "output_file"):
        if not getattr(values, name):
            raise ConfigError(f"--{name.replace('_', '-')} is missing; see `octavo run-batch --help`")
    engine_config, server_config = build(EngineConfig, settings), build(ServerConfig, settings)
    set_up_logging(server_config.log_level)
    from octavo_server.api.run_batch import BatchJob
    from octavo_server.api.run_batch import run_batch as run
    from octavo_server.api.server import make_state
    from octavo_server.progress import Bar

    job = BatchJob(input_file=values.input_file, output_file=values.output_file, tmp_dir=values.output_tmp_dir)
    with Bar("lines") as bar:

        async def answer() -> Counts:
            return await run(
                make_state(engine_config, server_config),
                job,
                lambda counts: bar.show(counts.completed + counts.failed, counts.total),
            )

        counts = asyncio.run(answer())
    print(f"{counts.completed} of {counts.total} lines answered, {counts.failed} failed: {values.output_file}")
    return 1 if counts.failed else 0


def run_batch_parser() -> FlagParser:
    """Flags of `octavo run-batch`."""
    parser = FlagParser(
        prog="octavo run-batch",
        description="Answer a file of requests, one JSON line each (OpenAI's batch format), without a server.",
    )
    parser.add_argument("-i", "--input-file", metavar="FILE|URL", help="the requests; a path, or an http(s) address")
    parser.add_argument(
        "-o", "--output-file", metavar="FILE|URL", help="where the answers go; a path, or an http(s) address for PUT"
    )
    parser.add_argument(
        "--output-tmp-dir",
        metavar="DIR",
        default=None,
        help="folder of the answers so far, from which a run that was cut off goes on (default: beside the output)",
    )
    parser.add_argument("--model", default=argparse.SUPPRESS, help=f"{settings_of(EngineConfig)[0].help}")
    add_flags(parser, EngineConfig, skip=frozenset({"model"}))
    add_flags(parser, ServerConfig, skip=frozenset(field.name for field in fields(ServerConfig)) - OF_RUN_BATCH)
    add_config_file(parser)
    return parser


def download(argv: Sequence[str]) -> int:
    """`octavo download URI --to DIR`: a model's files onto this machine, checked."""
    from octavo_server.download_command import download as run

    print(run(argv))
    return 0


def plan(argv: Sequence[str]) -> int:
    """`octavo plan MODEL`: how much memory a model takes, and how much fits."""
    from octavo_server.plan.command import main as plan_main

    return plan_main(argv)


def bench(argv: Sequence[str]) -> int:
    """`octavo bench serve|throughput|latency|startup|compare`."""
    from octavo_server.bench.cli import main as bench_main

    return bench_main(argv)


def compile_ahead(argv: Sequence[str]) -> int:
    """`octavo compile`: the CPU kernels ahead of a first start."""
    from octavo_server.compile_command import compile_kernels

    return compile_kernels(argv)


def collect_env(argv: Sequence[str]) -> int:
    """`octavo collect-env`: what a bug report needs."""
    FlagParser(prog="octavo collect-env", description="Print what a bug report needs.").parse_strictly(argv)
    from importlib import metadata

    print(f"python: {platform.python_version()} on {platform.platform()}")
    print(f"processors: {os.cpu_count()} ({platform.machine()})")
    for name in ("octavo", "torch", "triton", "transformers", "tokenizers", "aiohttp", "numpy"):
        try:
            print(f"{name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed")
    if importlib.util.find_spec("torch"):
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        print(f"GPUs: {', '.join(names) or 'none'}")
    return 0


COMMANDS: dict[str, Command] = {
    "serve": Command(run=serve, help="serve one model over HTTP"),
    "generate": Command(run=generate, help="answer prompts without a server"),
    "run-batch": Command(run=run_batch, help="answer a file of requests without a server"),
    "download": Command(run=download, help="fetch a model's files"),
    "plan": Command(run=plan, help="say how much memory a model takes and how much fits, without its weights"),
    "bench": Command(run=bench, help="measure a server, the engine alone, a start; compare two results"),
    "compile": Command(run=compile_ahead, help="compile the CPU kernels ahead of a first start"),
    "collect-env": Command(run=collect_env, help="print what a bug report needs"),
}


def _fail(error: OctavoError) -> int:
    line = " ".join(str(error).split())
    print(f"octavo: error: {line}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1
