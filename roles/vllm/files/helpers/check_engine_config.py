#!/usr/bin/env python3
"""Validate engines' configuration files with vLLM's own parser, without starting an engine.

    check_engine_config.py FILE.yml...

Releases of vLLM drop flags, and an engine with a dropped one fails at its start, when its predecessor has already
stopped. Runs with the Python of the engine's venv and takes about ten seconds, for vLLM's imports.
Exit status 1 with one line per problem on standard error.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


class BadValueError(Exception):
    """What vLLM's parser says about a value."""


def serve_parser() -> tuple[Any, Any]:
    """vLLM's command line as ``vllm serve`` builds it: the whole parser, and that of ``serve``."""
    from vllm.entrypoints.cli import serve

    class Parser(serve.FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise BadValueError(message)

    parser = Parser()
    subparsers = parser.add_subparsers(dest="subparser", parser_class=Parser)
    command = serve.cmd_init()[0]
    options = command.subparser_init(subparsers)
    options.set_defaults(_validate=command.validate)
    return parser, options


def flags_of(options: argparse.ArgumentParser) -> set[str]:
    """Names of all flags, as keys of a configuration file have them: without the dashes."""
    return {flag[2:] for action in options._actions for flag in action.option_strings if flag.startswith("--")}


def unknown_keys(config: dict[str, Any], known: set[str]) -> Iterator[str]:
    """A problem for each key that is no flag. vLLM itself reports only the first, and ignores keys whose value is false."""
    for key in config:
        name = key.partition(".")[0].replace("_", "-")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            yield f"vLLM has no option {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def unknown_parsers(config: dict[str, Any]) -> Iterator[str]:
    """A problem for each parser that vLLM does not have; vLLM itself notices it only at the engine's start. Plugins add parsers."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    said = {name.replace("_", "-"): value for name, value in config.items()}
    for kind, manager in (("tool", ToolParserManager), ("reasoning", ReasoningParserManager)):
        option = {"tool": "tool-call-parser", "reasoning": "reasoning-parser"}[kind]
        known = manager.list_registered()
        if said.get(option) and said[option] not in known and not said.get(f"{kind}-parser-plugin"):
            yield f"vLLM has no {option} {said[option]!r}; there are {', '.join(sorted(known))}"


def problems(path: Path, parser: Any, options: Any) -> Iterator[str]:
    import yaml

    config = yaml.safe_load(path.read_text())
    unknown = list(unknown_keys(config, flags_of(options)))
    if unknown:
        yield from unknown
        return
    yield from unknown_parsers(config)
    try:
        arguments = parser.parse_args(["serve", "--config", str(path)])
        arguments._validate(arguments)
    except (BadValueError, ValueError, TypeError) as error:
        yield " ".join(str(error).split())


def main(paths: list[str]) -> int:
    if not paths:
        print("usage: check_engine_config.py FILE.yml...", file=sys.stderr)
        return 2
    parser, options = serve_parser()
    found = [f"{path}: {problem}" for path in paths for problem in problems(Path(path), parser, options)]
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
