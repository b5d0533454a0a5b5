"""OpenVINO GenAI's side of `benchmarks.openvino`: run by the interpreter of its own environment, imports nothing of ours.

    python -P openvino_child.py MODEL.gguf THREADS SEQUENCES

One JSON line on standard input a task, one on standard output an answer; the first answer says what it is.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai as genai  # type: ignore[import-not-found]

BATCH_TOKENS, CACHE_GB = 4096, 2


class Model:
    """Its continuous batching, with a step at a time."""

    def __init__(self, path: str, threads: int, sequences: int) -> None:
        settings = genai.SchedulerConfig()
        settings.max_num_batched_tokens, settings.max_num_seqs = BATCH_TOKENS, sequences
        settings.cache_size, settings.enable_prefix_caching = CACHE_GB, False
        self._pipeline = genai.ContinuousBatchingPipeline(path, settings, "CPU", {"INFERENCE_NUM_THREADS": threads})
        self._count = 0

    def seconds(self, prompts: list[list[int]], steps: int) -> list[float]:
        """Of each step with all sequences after the one that computes the prompts; of that one where steps is 0."""
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = steps + 1
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        handles = []
        for prompt in prompts:
            self._count += 1
            handles.append(
                self._pipeline.add_request(self._count, openvino.Tensor(np.array([prompt], np.int64)), config)
            )
        taken = []
        while self._pipeline.has_non_finished_requests():
            started = time.perf_counter()
            self._pipeline.step()
            taken.append(time.perf_counter() - started)
        assert all(len(handle.read_all()[0].generated_ids) == steps + 1 for handle in handles)
        return taken[-steps:] if steps else taken[:1]


def main() -> None:
    """Answers tasks until standard input ends."""
    path, threads, sequences = sys.argv[1:]
    model = Model(path, int(threads), int(sequences))
    model.seconds([list(range(10, 26))], 1)
    answer({"version": genai.__version__})
    for line in sys.stdin:
        task: dict[str, Any] = json.loads(line)
        answer({"seconds": model.seconds(task["prompts"], task["steps"])})


def answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
