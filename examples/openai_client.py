"""Ask a server or gateway by OpenAI's client, as a stream: python examples/openai_client.py URL [MODEL]

URL is such as http://127.0.0.1:8080/v1; MODEL is the first that it serves, unless given.
"""

import sys

from openai import OpenAI

with OpenAI(base_url=sys.argv[1], api_key="none") as client:
    model = sys.argv[2] if len(sys.argv) > 2 else client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is Kubernetes? Answer in one sentence."}],
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            print(f"\n({model}: {chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out)")
