"""The command line: `inference-proxy serve`, `check-config`, `check-keys`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, logs
from .config import ConfigError, load_config, load_keys
from .server import make_server


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options)
        load = load_config if options.command == "check-config" else load_keys
        load(options.path)
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    return 0


def _serve(options: argparse.Namespace) -> int:
    # A reload asked for before there is anything to reload must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = make_server(options.config, options.host, options.port)
    logs.configure()
    server.run()
    return 0 if server.started else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inference-proxy", description="The API tier in front of vLLM engines."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run one worker")
    serve.add_argument("--config", type=Path, required=True, help="path of config.yml")
    serve.add_argument("--host", required=True, help="address to listen on")
    serve.add_argument("--port", type=int, required=True)
    for name, what in (
        ("check-config", "config.yml, without the keys file that it names"),
        ("check-keys", "a keys file"),
    ):
        check = commands.add_parser(
            name, help=f"check {what}; exit 2 and one line a problem if it cannot be used"
        )
        check.add_argument("path", type=Path)
    return parser
