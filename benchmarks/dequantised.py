"""A GGUF model as the folder that transformers serves: float32 weights, no token that ends an answer.

    python -m benchmarks.dequantised MODEL.gguf FOLDER

transformers reads GGUF files, but its server does not. Answers are to have the length that was asked for, and its server
knows no `ignore_eos`; hence no end token.
"""

from __future__ import annotations

import sys
from pathlib import Path


def export(model: Path, folder: Path) -> None:
    """Writes weights, config and tokenizer; a folder that is there is complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures, config.eos_token_id = [type(loaded).__name__], None
    # One that does not know that it came from quantised weights, which are refused when saved.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config.eos_token_id = None
    partial = folder.with_name(folder.name + ".partial")
    plain.save_pretrained(partial)
    AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
