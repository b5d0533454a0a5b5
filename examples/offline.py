"""Continue a few prompts without a server: python examples/offline.py MODEL

MODEL is a folder, a .gguf file or a name on the Hugging Face hub.
"""

import sys

from octavo_server import LLM, SamplingParams

prompts = ["Kubernetes is", "The capital of France is", "A pod holds"]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=32, seed=1)

llm = LLM(model=sys.argv[1])
for output in llm.generate(prompts, sampling_params):
    print(f"{output.prompt!r} -> {output.outputs[0].text!r}")
