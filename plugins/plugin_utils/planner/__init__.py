"""Compute whether a model fits on a host's GPUs, and with which of vLLM's options: pure functions, except for `model_files`.

From the top down: `plans` chooses and explains, `memory` does the arithmetic, `shapes` reads a model's config.json, `flags` reads vLLM's options.
"""
