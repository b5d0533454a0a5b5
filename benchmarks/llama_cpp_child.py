"""llama.cpp's side of `benchmarks.llama_cpp`: run by the interpreter of its own environment, imports nothing of ours.

    python -P llama_cpp_child.py MODEL.gguf THREADS repacked|plain SEQUENCES CONTEXT

`repacked` is llama.cpp's own choice: weights in the layout of its fastest kernels, on some processors those of AMX.
Each of SEQUENCES has CONTEXT tokens of its own, which is faster here than one cache for all (`kv_unified`).

One JSON line on standard input a task, one on standard output an answer; the first answer says what was built.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import llama_cpp as llama  # type: ignore[import-not-found]
import numpy as np

BATCH_TOKENS = 2048


class Model:
    """A model and its cache."""

    def __init__(self, path: str, threads: int, sequences: int, context: int, *, repacks: bool) -> None:
        llama.llama_backend_init()
        model_settings = llama.llama_model_default_params()
        model_settings.n_gpu_layers = 0
        model_settings.use_extra_bufts = repacks
        self._model = llama.llama_model_load_from_file(path.encode(), model_settings)
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = sequences * context, BATCH_TOKENS, 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_seq_max = sequences
        settings.kv_unified = False
        self._context = llama.llama_init_from_model(self._model, settings)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def run(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Computes (token, position, sequence, wanted) at once -> the likeliest token after each wanted one."""
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        status = llama.llama_decode(self._context, batch)
        llama.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode: status {status}")
        return [self._best(i) for i, token in enumerate(tokens) if token[3]]

    def _best(self, row: int) -> int:
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, row), (self.vocabulary,))
        return int(logits.argmax())


def decode(model: Model, prompts: list[list[int]], steps: int) -> list[float]:
    """Seconds of each step in which all sequences get one token."""
    model.clear()
    tokens = [model.run(_prompt(prompt, sequence))[0] for sequence, prompt in enumerate(prompts)]
    seconds = []
    for step in range(steps):
        rows = [(token, len(prompts[i]) + step, i, True) for i, token in enumerate(tokens)]
        started = time.perf_counter()
        tokens = model.run(rows)
        seconds.append(time.perf_counter() - started)
    return seconds


def prefill(model: Model, prompt: list[int]) -> float:
    """Seconds to the first token."""
    model.clear()
    started = time.perf_counter()
    model.run(_prompt(prompt, 0))
    return time.perf_counter() - started


def _prompt(prompt: list[int], sequence: int) -> list[tuple[int, int, int, bool]]:
    return [(token, position, sequence, position == len(prompt) - 1) for position, token in enumerate(prompt)]


def main() -> None:
    """Answers tasks until standard input ends."""
    path, threads, layout, sequences, context = sys.argv[1:]
    model = Model(path, int(threads), int(sequences), int(context), repacks=layout == "repacked")
    # Dies here, before it says that it is ready, where its kernels cannot run.
    prefill(model, list(range(10, 74)))
    about = {"version": llama.__version__, "system": llama.llama_print_system_info().decode(), "layout": layout}
    answer(about)
    for line in sys.stdin:
        task: dict[str, Any] = json.loads(line)
        if task["task"] == "decode":
            answer({"seconds": decode(model, task["prompts"], task["steps"])})
        else:
            answer({"seconds": [prefill(model, task["prompts"][0])]})


def answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
