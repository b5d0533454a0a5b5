"""One command that proves and measures the GPU path: `python -m benchmarks.gpu_report --out DIR`, see docs/performance.md.

It needs torch, triton, transformers, safetensors, aiohttp, prometheus-client and numpy, and nothing else that the product
depends on. Each part runs in a process of its own, within a time of its own, so that a crash or a hang costs that part
alone.
"""
