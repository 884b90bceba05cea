"""API keys: who calls, from where, and the file that lists them."""
