"""`octavo compile`: the CPU kernels ahead of a first start, when Octavo is installed or an image is built.

Tiny random models answer once in each quantized mode, one whose step is a single kernel and one that runs operation by
operation. What is compiled lies where a start looks for it; an image names that folder by $OCTAVO_COMPILED_KERNELS.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.flags import FlagParser
from octavo_server.logs import set_up_logging

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 256, 64, 128, 2, 4, 2
HEAD_DIMS = (16, 8)
"""Two query heads share a key head: 32 numbers, whole groups, make a single kernel; 16 do not."""

MODES = ("int8", "int4")


def compile_kernels(argv: Sequence[str]) -> int:
    """Runs the command; says how much was compiled, and where it lies."""
    parser = FlagParser(
        prog="octavo compile",
        description="Compile the CPU kernels for this processor, or the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES "
        "name, into $NUMBA_CACHE_DIR, else $OCTAVO_CACHE, else ~/.cache/octavo.",
    )
    parser.parse_strictly(argv)
    set_up_logging("warning")
    from octavo_kernels import numba_compile

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for head_dim in HEAD_DIMS:
            _answer(write_model(Path(folder), head_dim))
    compiled, found = numba_compile.counts()
    where = numba_compile.FOLDER or "nowhere: no folder can be written, so each start compiles anew"
    print(f"{compiled} kernels compiled in {time.monotonic() - began:.1f} s, {found} were there already")
    print(f"{numba_compile.PROCESSOR}, {numba_compile.INSTRUCTIONS}: {where}")
    return 0 if numba_compile.FOLDER else 1


def _answer(model: Path) -> None:
    from octavo_server import LLM, SamplingParams

    for mode in MODES:
        llm = LLM(str(model), quantization=mode, num_gpu_blocks_override=64)
        for params in (
            SamplingParams(max_tokens=4, temperature=0.8, top_p=0.9),
            SamplingParams(max_tokens=4, temperature=0),
        ):
            llm.generate(["a b c", "d"], params, use_tqdm=False)


def write_model(folder: Path, head_dim: int) -> Path:
    """A Llama whose layers are as wide as the kernels want them, and a tokenizer of bytes."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q_proj", HEADS), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (rows * head_dim, HIDDEN)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * head_dim)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{prefix}.mlp.{name}.weight"] = (INNER, HIDDEN)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder
