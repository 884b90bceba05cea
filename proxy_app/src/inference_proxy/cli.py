"""The command line: `inference-proxy serve`, `check-config`, `check-keys`, `keys`, `usage`."""

import argparse
import signal
import sqlite3
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from inference_proxy import __version__
from inference_proxy.accounting import logs
from inference_proxy.accounting.usage_store import Used, default_since, read_usage, today
from inference_proxy.config import ConfigError, load_config, load_keys
from inference_proxy.keys import editor
from inference_proxy.worker import make_server


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options)
        if options.command == "keys":
            return _keys(options)
        if options.command == "usage":
            return _usage(options)
        load = load_config if options.command == "check-config" else load_keys
        load(options.path)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    return 0


def _serve(options: argparse.Namespace) -> int:
    # A reload signal before there is anything to reload must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = make_server(options.config, options.host, options.port)
    logs.configure()
    server.run()
    return 0 if server.started else 1


def _keys(options: argparse.Namespace) -> int:
    if options.action == "hash":
        print(editor.hash_of(sys.stdin.readline().rstrip("\r\n")))
    elif options.action == "list":
        print(*editor.table(load_keys(options.file), datetime.now(UTC)), sep="\n")
    elif options.action == "revoke":
        editor.revoke(options.file, options.name)
    else:
        fields: dict[str, Any] = {name: getattr(options, name) for name in _KEY_FIELDS}
        print(editor.add(options.file, {name: value for name, value in fields.items() if value}))
    return 0


_KEY_FIELDS = ("name", "owner", "models", "priority", "expires", "cidrs")


def _usage(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    if config.usage is None:
        raise ConfigError([f"{options.config}: usage: missing, so workers count nothing"])
    until = options.until or today()
    since = options.since or default_since(until)
    try:
        rows = read_usage(config.usage.directory, since, until, options.key)
    except (OSError, sqlite3.Error) as error:
        print(f"usage cannot be read from {config.usage.directory}: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(msgspec.json.encode(rows).decode())
        return 0
    print(*Used.__struct_fields__, sep="\t")
    for row in rows:
        print(*msgspec.structs.astuple(row), sep="\t")
    return 0


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
    usage = commands.add_parser(
        "usage", help="what was used by day (UTC), key and model, of all workers of this host"
    )
    usage.add_argument("--config", type=Path, required=True, help="path of config.yml")
    usage.add_argument("--since", type=date.fromisoformat, help="first day, such as 2026-11-01; 30 days back")
    usage.add_argument("--until", type=date.fromisoformat, help="last day; today")
    usage.add_argument("--key", help="a key's name; all keys")
    usage.add_argument("--json", action="store_true", help="JSON instead of columns between tabs")
    for name, what in (
        ("check-config", "config.yml, without the keys file that it names"),
        ("check-keys", "a keys file"),
    ):
        check = commands.add_parser(
            name, help=f"check {what}; exit 2 and one line a problem if it cannot be used"
        )
        check.add_argument("path", type=Path)
    _add_keys(
        commands.add_parser("keys", help="make, hash, list and revoke keys; exit 2 if it cannot be done")
    )
    return parser


def _add_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    new = actions.add_parser(
        "new", help="make a key, put its hash into the file, and print the key, which is kept nowhere"
    )
    actions.add_parser(
        "hash", help="read a key from standard input, and print the hash that a keys file has of it"
    )
    show = actions.add_parser("list", help="show the keys of a file")
    revoke = actions.add_parser("revoke", help="take a key out of a file; workers refuse it within a second")
    for action in (new, show, revoke):
        action.add_argument("file", type=Path, help="path of keys.yml")
    for action in (new, revoke):
        action.add_argument("name", help="the key's own name")
    new.add_argument("--owner", help="the tenant whose key it is; by default its name")
    new.add_argument(
        "--model",
        action="append",
        dest="models",
        metavar="MODEL",
        help="a model that it may use; all without one",
    )
    new.add_argument("--priority", help="a name in `priorities` of config.yml")
    new.add_argument(
        "--expires", help="moment, in UTC, from which it is not valid, such as 2027-01-31T00:00:00Z"
    )
    new.add_argument(
        "--cidr",
        action="append",
        dest="cidrs",
        metavar="NETWORK",
        help="a network of its clients; all without one",
    )
