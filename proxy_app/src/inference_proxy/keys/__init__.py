"""API keys: which caller they belong to, from where they may be used, and the file that lists them."""
