"""`octavo plan MODEL`: how much memory a model takes and how much fits, before anything is downloaded or bought."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.errors import ConfigError
from octavo_server.flags import FlagParser, add_config_file, add_flags, build, read_settings, settings_of
from octavo_server.plan.advice import Answer, Question, answer
from octavo_server.plan.gpus import Device, find_gpu
from octavo_server.plan.source import read_shape
from octavo_server.plan.table import as_json, table
from octavo_server.plan.this_machine import this_device

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAGS = frozenset(
    {
        "model",
        "revision",
        "dtype",
        "quantization",
        "device",
        "max_model_len",
        "max_num_seqs",
        "enforce_eager",
        "max_num_batched_tokens",
        "block_size",
        "num_gpu_blocks_override",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
        "kv_cache_dtype",
    }
)
"""Settings of the engine that change a plan."""
_WAYS = "tensor_parallel_size"


def main(argv: Sequence[str]) -> int:
    """0 where it fits, 1 where it does not."""
    values = plan_parser().parse_strictly(argv)
    settings = read_settings(values, os.environ, EngineConfig, ServerConfig)
    # Apart, since a remedy may be another number.
    ways = settings.pop(_WAYS, 1)
    if ways < 1:
        raise ConfigError(f"--tensor-parallel-size is {ways}, it must be at least 1")
    found = plan_model(build(EngineConfig, settings), gpu=values.gpu, ways=ways)
    sys.stdout.write((json.dumps(report(found), indent=2) if values.json else text(found)) + "\n")
    return 0 if found.fits else 1


def plan_model(config: EngineConfig, *, gpu: str | None = None, ways: int = 1) -> Answer:
    """The plan of `config` on `ways` of the GPU called `gpu`, on "cpu", or, for None, on this machine.

    Raises:
        ConfigError: a GPU that is not in the table, or settings that contradict the model.
        StartupError: the model cannot be found, or is of an unknown architecture.
    """
    device = _device(config, gpu)
    return answer(Question(model=read_shape(config), device=device, config=config, ways=ways))


def report(found: Answer) -> dict[str, object]:
    """The answer for a program."""
    return {
        "fits": found.fits,
        "problem": found.problem,
        "remedies": list(found.remedies),
        "notes": list(found.notes),
        **as_json(found.memory),
    }


def text(found: Answer) -> str:
    """The answer for a person."""
    lines = [table(found.memory)]
    if found.problem:
        lines.append(f"does not fit: {found.problem}")
        lines.append("what would: " + ("; ".join(found.remedies) or "nothing that changes one thing alone"))
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(lines)


def plan_parser() -> FlagParser:
    """Flags of `octavo plan`."""
    parser = FlagParser(
        prog="octavo plan",
        description="Say how much memory a model takes and how much fits. Reads its configuration, no weights.",
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        default=None,
        help="where to plan for: a GPU's name such as H200 or L4, its memory such as 48GiB, or cpu for this machine's "
        "(default: the first GPU of this machine, else its CPU)",
    )
    ways = next(setting for setting in settings_of(EngineConfig) if setting.name == _WAYS)
    parser.add_argument(
        ways.flag,
        "--tp",
        metavar="SIZE",
        default=argparse.SUPPRESS,
        help="GPUs, or processes on a CPU, that share the model, each with a part of heads, of the MLP and of the "
        "vocabulary (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: bytes, tokens, tokens a second")
    add_flags(parser, EngineConfig, skip=frozenset(s.name for s in settings_of(EngineConfig)) - FLAGS)
    add_config_file(parser)
    return parser


def _device(config: EngineConfig, gpu: str | None) -> Device:
    if gpu is None or gpu.lower() == "cpu":
        return this_device(config.device if gpu is None else "cpu")
    if config.device == "cpu":
        raise ConfigError(f"--gpu {gpu[:60]} contradicts --device cpu; leave one out")
    return find_gpu(gpu)
