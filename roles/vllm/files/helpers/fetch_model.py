#!/usr/bin/env python3
"""Download a model to a directory of its own, unless it is there already.

    fetch_model.py --models-dir DIR [--revision COMMIT] [--check] MODEL
    fetch_model.py --models-dir DIR --list FILE     several: [[MODEL, COMMIT], …]

MODEL is a hub id (``Qwen/Qwen3-8B``, with ``--revision``) or ``s3://bucket/prefix``. Addresses and
credentials of the hub or S3 come from the environment (``HF_ENDPOINT``, ``HF_TOKEN``, ``AWS_ENDPOINT_URL``, …), on AWS
normally from the instance's role.

The directory is named after the model and its exact content: the hub's commit, or a digest of what S3 lists.
It gets that name when everything is downloaded; until then files are in a ``.part`` directory beside it.
The next try downloads only the missing bytes. The result is one line of JSON: ``{"path": …, "changed": …}``, after a
download with its ``seconds``; with ``--check`` also the ``missing_bytes`` and the ``free_bytes`` of the disk.

Runs with the Python of the engines' venv, as the engines' user. Exit status 1 with a message if the model cannot be
downloaded, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
# Files at once: a single connection does not use the whole bandwidth.
PARALLEL = 8
CHUNK_BYTES = 1024 * 1024
S3_TRIES = 5
UNFINISHED = ".incomplete"
# Copies of the weights in other formats: tens of gigabytes that no engine reads.
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*", "onnx/*")


class FetchError(Exception):
    """The model cannot be downloaded; the text says what to do."""


@dataclass(frozen=True)
class Model:
    """A model with known content: the name of its directory, how to download it into one, and its files' bytes."""

    directory_name: str
    download: Callable[[Path], None]
    sizes_bytes: Callable[[], dict[str, int]]


def sanitised(text: str) -> str:
    """A file name from a model's name: ``Qwen/Qwen3-8B`` becomes ``Qwen--Qwen3-8B``."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text.strip("/").replace("/", "--"))


def from_hub(name: str, revision: str) -> Model:
    """A repository of a Hugging Face hub at one commit. The hub is not asked before the download."""
    if not COMMIT.fullmatch(revision):
        raise FetchError(f"{name}: `revision` must be the 40 digits of a commit; it is {revision!r}")

    def sizes_bytes() -> dict[str, int]:
        from huggingface_hub import HfApi

        with hub_errors(name, revision):
            files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
        sizes = {entry.rfilename: entry.size or 0 for entry in files}
        return {file: sizes[file] for file in wanted_files(sizes)}

    def download(directory: Path) -> None:
        from huggingface_hub import HfApi

        with hub_errors(name, revision):
            files = [entry.rfilename for entry in HfApi().model_info(name, revision=revision).siblings or []]
            in_parallel(lambda file: hub_file(name, revision, file, directory), wanted_files(files))
        shutil.rmtree(
            directory / ".cache", ignore_errors=True
        )  # notes of a download by an earlier version of this program

    return Model(f"{sanitised(name)}@{revision}", download, sizes_bytes)


def wanted_files(files: Iterable[str]) -> list[str]:
    """The files of a repository without copies of the weights in other formats."""
    names = list(files)
    skipped = OTHER_FORMATS if any(file.endswith(".safetensors") for file in names) else ()
    return [file for file in names if not any(fnmatch.fnmatch(file, pattern) for pattern in skipped)]


@contextlib.contextmanager
def hub_errors(name: str, revision: str) -> Iterator[None]:
    """Raise a FetchError that says what an error of the hub means and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    endpoint = constants.ENDPOINT
    try:
        yield
    except GatedRepoError as error:
        raise FetchError(
            f"{name}: its owner lets in only those who accepted its terms; accept them on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise FetchError(f"{name}: {endpoint} has no revision {revision}; correct `revision`") from error
    except RepositoryNotFoundError as error:
        raise FetchError(
            f"{name}: {endpoint} has no such model, or it is private; correct `model`, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        raise FetchError(f"{name}: {endpoint} answered: {first_line(error)}") from error
    except (OSError, FetchError):
        raise  # a full disk, which `fetch` explains, or an error that explains itself
    except Exception as error:  # its type depends on the HTTP library that this version of the hub's client uses
        raise FetchError(f"{name}: {endpoint} cannot be reached: {first_line(error)}") from error


def hub_file(name: str, revision: str, file: str, directory: Path) -> None:
    """One file of a hub's repository. The hub's own client would start an interrupted file from its beginning."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # loaded lazily

    target = inside(directory, file, name)
    if target.is_file():
        return
    url = hf_hub_url(name, file, revision=revision)
    told = get_hf_file_metadata(url)
    # A compressed transfer could not be continued at a byte of the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}

    def append(part: BinaryIO, have_bytes: int) -> None:
        http_get(url, part, resume_size=have_bytes, headers=headers, expected_size=told.size)

    # The entity tag of large files is their SHA-256; small ones, which git itself keeps, have only their size.
    digest = told.etag if told.etag and SHA256.fullmatch(told.etag) else None
    complete(target, told.size, digest, append)


def from_s3(address: str) -> Model:
    """All objects under a prefix, as S3 lists them now."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    try:
        client = boto3.client("s3")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        listed = [entry for page in pages for entry in page.get("Contents", [])]
    except (BotoCoreError, ClientError, ValueError) as error:
        raise FetchError(f"{address}: cannot be listed: {first_line(error)}; see the instance's role") from error
    objects: dict[str, Any] = {
        entry["Key"].removeprefix(prefix): entry for entry in listed if not entry["Key"].endswith("/")
    }
    if not objects:
        raise FetchError(f"{address}: holds no object; correct `model`")
    for name in objects:
        inside(Path(), name, address)
    content = json.dumps([[name, entry["ETag"], entry["Size"]] for name, entry in sorted(objects.items())])

    def s3_file(name: str, directory: Path) -> None:
        target, entry = directory / name, objects[name]
        # A file gets its final name only when it is complete, so comparing the size is enough.
        if target.is_file() and target.stat().st_size == entry["Size"]:
            return

        def append(part: BinaryIO, have_bytes: int) -> None:
            for tries_left in reversed(range(S3_TRIES)):
                # Only if it is still the object that was listed: bytes of a newer object must not be appended.
                wanted = {"Bucket": bucket, "Key": entry["Key"], "IfMatch": entry["ETag"]}
                if part.tell():
                    wanted["Range"] = f"bytes={part.tell()}-"
                try:
                    for chunk in client.get_object(**wanted)["Body"].iter_chunks(CHUNK_BYTES):
                        part.write(chunk)
                    return
                except HTTPClientError:  # the connection broke
                    if not tries_left:
                        raise

        try:
            complete(target, entry["Size"], None, append)
        except (BotoCoreError, ClientError, OSError) as error:
            raise FetchError(f"s3://{bucket}/{entry['Key']}: {first_line(error)}") from error

    def download(directory: Path) -> None:
        in_parallel(lambda name: s3_file(name, directory), sorted(objects))

    return Model(
        f"{sanitised(f'{bucket}/{prefix}')}@{hashlib.sha256(content.encode()).hexdigest()[:12]}",
        download,
        lambda: {name: entry["Size"] for name, entry in objects.items()},
    )


def inside(directory: Path, name: str, origin: str) -> Path:
    """The path of a file of the model; raises FetchError for one outside the directory."""
    if ".." in Path(name).parts or name.startswith("/"):
        raise FetchError(f"{origin}: object {name!r} would leave the model's directory; rename it")
    return directory / name


def in_parallel(download: Callable[[str], None], names: Iterable[str]) -> None:
    """Download several files at once; raise the first error after all have ended, so that the others are kept."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(download, names))


def complete(target: Path, size_bytes: int | None, sha256: str | None, append: Callable[[BinaryIO, int], None]) -> None:
    """Complete `target`: `append` adds what follows the bytes that an earlier try has left.

    The whole is verified; a file with wrong content is downloaded once more from its beginning.
    """
    part = target.with_name(target.name + UNFINISHED)
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        have_bytes = part.stat().st_size if part.exists() else 0
        if size_bytes is None or have_bytes > size_bytes:
            part.unlink(missing_ok=True)
            have_bytes = 0
        with part.open("ab") as file:
            if size_bytes is None or have_bytes < size_bytes:
                append(file, have_bytes)
        if size_bytes in (None, part.stat().st_size) and sha256 in (None, file_sha256(part) if sha256 else None):
            part.rename(target)
            return
        part.unlink()
    raise FetchError(
        f"{target.name}: its content is not what its origin says it is, also when fetched anew; try again later"
    )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(model: Model, models_dir: Path) -> tuple[Path, bool]:
    """Ensure that the model is in ``models_dir``; return its directory and whether it was downloaded."""
    target = models_dir / model.directory_name
    if target.is_dir():
        return target, False
    models_dir.mkdir(parents=True, exist_ok=True)
    with _alone(models_dir / f".{model.directory_name}.lock"):
        if target.is_dir():  # downloaded by the process that held the lock before
            return target, False
        unfinished = models_dir / f"{model.directory_name}.part"
        unfinished.mkdir(exist_ok=True)
        try:
            model.download(unfinished)
        except OSError as error:
            raise FetchError(f"{target}: {error}; free space is {_free_bytes(models_dir) // 10**9} GB") from error
        if not any((unfinished / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise FetchError(f"{target}: what was downloaded has no config.json, so it is not a model; correct `model`")
        _flush(unfinished)
        unfinished.rename(target)
    return target, True


def missing_bytes(model: Model, models_dir: Path) -> int:
    """How many bytes a download would add to those on the disk, including those of an interrupted download."""
    if (models_dir / model.directory_name).is_dir():
        return 0
    unfinished = models_dir / f"{model.directory_name}.part"
    return sum(
        max(0, size_bytes - max(_size(unfinished / name), _size(unfinished / f"{name}{UNFINISHED}")))
        for name, size_bytes in model.sizes_bytes().items()
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process downloads the same model; an interrupted run may have left one."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _flush(directory: Path) -> None:
    """Flush the files to the disk. Called before their directory gets its final name, which promises complete files."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def _free_bytes(directory: Path) -> int:
    """Free space on a directory's disk. If the directory does not exist yet, the nearest one above it counts."""
    while not directory.is_dir():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bring a model to a directory of its own.")
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--revision", default="", help="commit, for a hub id")
    parser.add_argument("--check", action="store_true", help="download nothing; say where it would be, and how large")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--list", type=Path, help="file with several models and their revisions")
    which.add_argument("model", nargs="?", help="hub id or s3://bucket/prefix")
    return parser.parse_args(arguments)


def result_of(name: str, revision: str, models_dir: Path, check: bool) -> dict[str, Any]:
    """Fetch a model, or with `check` only look what that would do."""
    model = from_s3(name) if name.startswith("s3://") else from_hub(name, revision)
    if check:
        path = models_dir / model.directory_name
        return {
            "path": str(path),
            "changed": not path.is_dir(),
            "missing_bytes": missing_bytes(model, models_dir),
            "free_bytes": _free_bytes(models_dir),
        }
    began_s = time.monotonic()
    path, changed = fetch(model, models_dir)
    took = {"seconds": round(time.monotonic() - began_s, 1)} if changed else {}
    return {"path": str(path), "changed": changed, **took}


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    os.umask(0o027)
    models = json.loads(options.list.read_text()) if options.list else [[options.model, options.revision]]
    status = 0
    for name, revision in models:
        try:
            print(json.dumps(result_of(name, revision, options.models_dir, options.check)), flush=True)
        except FetchError as error:
            print(f"cannot fetch the model: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
