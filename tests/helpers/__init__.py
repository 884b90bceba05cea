"""What the scenarios' tests share. pytest finds the package by `pythonpath` in pyproject.toml."""
