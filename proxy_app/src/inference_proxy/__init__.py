"""The API tier: a Starlette application between nginx and vLLM engines."""

__version__ = "0.1.0"
