"""How much of a model fits on a host's GPUs, and with which of vLLM's options: pure functions, which read and write nothing.

From the top down: `plans` chooses and explains, `memory` does the arithmetic, `shapes` reads a model's config.json, `flags` reads vLLM's options.
"""
