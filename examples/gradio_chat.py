"""A chat page over a model in this process: pip install gradio, then python examples/gradio_chat.py MODEL

MODEL is a folder, a .gguf file or a name on the Hugging Face hub.
"""

import sys

import gradio as gr

from octavo_server import LLM, SamplingParams

llm = LLM(model=sys.argv[1])


def answer(message, history, temperature, top_p, max_tokens):
    """What the model says to `message` after the turns of `history`."""
    sampling_params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=int(max_tokens))
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in history]
    outputs = llm.chat([*turns, {"role": "user", "content": message}], sampling_params, use_tqdm=False)
    return outputs[0].outputs[0].text


gr.ChatInterface(
    answer,
    title="Octavo",
    additional_inputs=[
        gr.Slider(0, 2, value=0.7, step=0.1, label="temperature"),
        gr.Slider(0.05, 1, value=0.95, step=0.05, label="top_p"),
        gr.Slider(1, 2048, value=256, step=1, label="max_tokens"),
    ],
    # An LLM belongs to one thread at a time.
    concurrency_limit=1,
).launch()
