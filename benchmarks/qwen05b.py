"""The shape of Qwen2.5-0.5B with random weights on a CPU: tokens a second, and what share of the machine's limits they are.

    python -m benchmarks.qwen05b [--quantizations int8,int4,none] [--rounds 5] [--threads 2] [--json FILE]

Limits are measured in the same run, between the cases: one token at a time must read each weight once, so the limit is
the bandwidth of reading over the bytes; many tokens must multiply, so it is the rate of a product that stays in the
caches over the multiplications of a token. A busy machine moves limits and figures alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.arguments import count, counts
from benchmarks.llama_cpp import Case, Ours
from benchmarks.record import write_json

if TYPE_CHECKING:
    import torch

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "eos_token_id": 151645,
    "bos_token_id": 151643,
}

_QUANTISED_BARS = {"decode 1": 35.0, "decode 8": 300.0, "decode 32": 400.0, "prefill": 1000.0}
BARS = {
    "int8": _QUANTISED_BARS,
    "int4": _QUANTISED_BARS,
    "none": {"decode 1": 8.0, "decode 8": 50.0, "decode 32": 110.0, "prefill": 300.0},
}
"""Tokens a second that are aimed at on two cores of AVX-512 VNNI."""

READ_BYTES = 2**29
_ROWS = 256
"""Of the product that says how fast this machine multiplies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The best that was seen of this machine, for one quantization."""

    read_bytes_s: float
    multiplications_s: float

    def tokens_s(self, case: Case, weight_bytes: int, multiplications: int) -> float:
        """What nothing can exceed: `case.batch` tokens for one reading of the weights, or a token's multiplications."""
        at_once = case.batch if case.steps else case.prompt_tokens
        return min(at_once * self.read_bytes_s / weight_bytes, self.multiplications_s / multiplications)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Tokens a second, a number a round, and the limit of the run."""

    quantization: str
    case: Case
    rates: list[float]
    limit: float

    @property
    def share(self) -> float:
        return median(self.rates) / self.limit

    def row(self) -> str:
        aim = BARS[self.quantization].get(self.case.name)
        return (
            f"{self.quantization:<6} {self.case.name:<10} {median(self.rates):>9.1f} "
            f"[{min(self.rates):.1f} .. {max(self.rates):.1f}] {self.limit:>9.1f} {self.share:>6.0%}"
            + ("" if aim is None else f"   aim {aim:.0f}")
        )


def multiplications_of(config: dict[str, Any], *, has_head: bool = True) -> int:
    """Of a token in all linear layers; of a prompt the output head computes the last token alone."""
    hidden, head = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * head * config["num_key_value_heads"]
    layer = attention + 3 * hidden * config["intermediate_size"]
    return int(config["num_hidden_layers"] * layer + has_head * config["vocab_size"] * hidden)


def weight_bytes_of(config: dict[str, Any], quantization: str) -> int:
    """That one token reads; a group of 32 has two bytes of scale, of 4 bits two of minimum, too."""
    head: int = config["vocab_size"] * config["hidden_size"]
    rest = multiplications_of(config) - head
    if quantization == "none":
        return 4 * (head + rest)
    group_bytes = {"int8": 32 + 2, "int4": 16 + 4}
    return (head * group_bytes["int8"] + rest * group_bytes[quantization]) // 32


def measure(quantization: str, model: str, cases: Sequence[Case], rounds: int, threads: int) -> list[Result]:
    """Loads the model, and measures each case once a round."""
    ours = Ours(model, quantization, threads, load_format="dummy", max_model_len=2048)
    limits = [limits_of(quantization, threads)]
    rates: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            seconds = ours.seconds(case, case.prompts(number, min(ours.vocabulary, 40_000)))
            work = case.batch if case.steps else case.prompt_tokens
            rates[case.name].append(work / median(seconds))
        limits.append(limits_of(quantization, threads))
    best = Limits(
        read_bytes_s=max(limit.read_bytes_s for limit in limits),
        multiplications_s=max(limit.multiplications_s for limit in limits),
    )
    weight_bytes = weight_bytes_of(CONFIG, quantization)
    return [
        Result(
            quantization=quantization,
            case=case,
            # a round before the first is thrown away
            rates=rates[case.name][1:],
            limit=best.tokens_s(case, weight_bytes, multiplications_of(CONFIG, has_head=case.steps > 0)),
        )
        for case in cases
    ]


def limits_of(quantization: str, threads: int) -> Limits:
    """Reads half a GiB, and multiplies by a matrix that stays in the caches, as this quantization does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    memory = torch.ones(READ_BYTES // 4)
    read = READ_BYTES / _best_seconds(memory.sum)
    rows, inputs, outputs = _ROWS, CONFIG["hidden_size"], CONFIG["intermediate_size"]
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    seconds = _best_seconds(_product(quantization, threads, x, weight), 20)
    torch.set_num_threads(before)
    return Limits(read_bytes_s=read, multiplications_s=rows * inputs * outputs / seconds)


def _product(quantization: str, threads: int, x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    """x: [num_tokens, in], weight: [out, in] float32."""
    from octavo_kernels.backend import select_backend, select_quantized_backend
    from octavo_kernels.quantized_weight import quantize

    if quantization == "none":
        exact = select_backend("cpu")
        kept = exact.prepare_linear(weight)
        return lambda: exact.linear(x, kept)
    backend = select_quantized_backend("cpu", threads)
    handle = backend.prepare_quantized_linear(quantize(weight, {"int8": 8, "int4": 4}[quantization]))
    return lambda: backend.linear(x, handle)


def _best_seconds(work: Callable[[], object], times: int = 3) -> float:
    work()
    best = float("inf")
    for _ in range(times):
        started = perf_counter()
        work()
        best = min(best, perf_counter() - started)
    return best


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row a case."""
    values = parser().parse_args(argv)
    cases = [Case(name=f"decode {n}", batch=n, prompt_tokens=128, steps=values.steps) for n in values.batches]
    cases.append(Case(name="prefill", batch=1, prompt_tokens=values.prefill, steps=0))
    results: list[Result] = []
    print(f"{values.threads} threads, load average {os.getloadavg()[0]:.1f}, {values.rounds} rounds; tokens a second")
    print(f"{'weights':<6} {'case':<9} {'ours':>9} [least .. most] {'limit':>9} {'share':>6}")
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        for quantization in values.quantizations:
            for result in measure(quantization, folder, cases, values.rounds, values.threads):
                results.append(result)
                print(result.row(), flush=True)
            # one model at a time in memory
            gc.collect()
    about = {"config": CONFIG, "threads": values.threads}
    figures = [{**asdict(result), "share": result.share} for result in results]
    write_json(values.json, "benchmarks.qwen05b", {**about, "results": figures})
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.qwen05b", description="The shape of Qwen2.5-0.5B.")
    made.add_argument("--quantizations", type=_names, default=list(BARS), help="default: int8,int4,none")
    made.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="default: all processors")
    made.add_argument("--rounds", type=count, default=5, help="default: %(default)s")
    made.add_argument("--batches", type=counts, default=[1, 8, 32], help="decodes at once (default: 1,8,32)")
    made.add_argument(
        "--prefill", type=count, default=512, help="tokens of the prefill's prompt (default: %(default)s)"
    )
    made.add_argument("--steps", type=count, default=12, help="timed steps of a decode a round (default: %(default)s)")
    made.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    return made


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in BARS:
            raise argparse.ArgumentTypeError(f"{name!r} must be one of {', '.join(BARS)}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())
