"""A model's config.json and the size of its weights, read on the controller from a directory, a hub or S3.

The only module of the planner that reads files. Files of a hub's commit are cached in the user's cache, since they never change.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .flags import PlanError

CONFIG, QUANTIZATION, INDEX = "config.json", "hf_quant_config.json", "model.safetensors.index.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TIMEOUT_S = 30
_LARGEST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ModelFiles:
    """The planner's input about a model; `weights_bytes` is None if the files do not show it."""

    config: Mapping[str, Any]
    weights_bytes: int | None


def read_model(model: str, revision: str = "") -> ModelFiles:
    """Read a model by its directory, `s3://bucket/prefix` or hub id. Raises PlanError, which says what to do."""
    if model.startswith("s3://"):
        return _model(model, lambda name: _from_s3(model, name))
    if model.startswith(("/", ".", "~")) or Path(model).is_dir():
        directory = Path(model).expanduser()
        return _model(str(directory), lambda name: _from_directory(directory, name), _files_bytes(directory))
    if not _HUB_ID.fullmatch(model):
        raise PlanError(
            [f"{model!r} is neither a directory, nor s3://bucket/prefix, nor a hub id such as Qwen/Qwen3-8B"]
        )
    return _model(model, lambda name: _from_hub(model, revision or "main", name))


def _model(where: str, read: Any, files_bytes: int | None = None) -> ModelFiles:
    raw = read(CONFIG)
    if raw is None:
        raise PlanError([f"{where} has no {CONFIG}: name the model's own directory, or another model"])
    config = _object(where, CONFIG, raw)
    apart = read(QUANTIZATION)
    if apart is not None and not config.get("quantization_config"):
        told = _object(where, QUANTIZATION, apart).get("quantization")
        config["quantization_config"] = {"quant_method": "modelopt", **(told if isinstance(told, dict) else {})}
    index = read(INDEX)
    metadata = _object(where, INDEX, index).get("metadata") if index is not None else None
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return ModelFiles(
        config, _usable(config, size if isinstance(size, int) and not isinstance(size, bool) else files_bytes)
    )


def _usable(config: Mapping[str, Any], size_bytes: int | None) -> int | None:
    """The size of the weights in memory, if it follows from that of the files."""
    if not size_bytes or size_bytes <= 0 or config.get("num_nextn_predict_layers"):
        return None  # layers that predict further tokens are in the files, and are not loaded
    # vLLM loads a model of four bytes with two.
    return size_bytes // 2 if str(config.get("torch_dtype") or config.get("dtype")) == "float32" else size_bytes


def _object(where: str, name: str, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise PlanError([f"{where}/{name} is no JSON: {str(error)[:100]}"]) from error
    if not isinstance(value, dict):
        raise PlanError([f"{where}/{name} is no JSON object"])
    return value


def _from_directory(directory: Path, name: str) -> bytes | None:
    try:
        return (directory / name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PlanError([f"{directory / name} cannot be read: {error.strerror}"]) from error


def _files_bytes(directory: Path) -> int | None:
    """The size of the weights' files, where all are there: a single file, or as many as their names say."""
    files = sorted(directory.glob("*.safetensors"))
    counts = {int(found[1]) for file in files if (found := re.search(r"-of-(\d+)\.safetensors$", file.name))}
    whole = (len(files) == 1 and not counts) or counts == {len(files)}
    return sum(file.stat().st_size for file in files) if files and whole else None


def _from_hub(model: str, revision: str, name: str) -> bytes | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ec2-inference" / "models"
    kept = cache / model.replace("/", "--") / revision / name
    if _COMMIT.fullmatch(revision) and kept.is_file():
        return kept.read_bytes() or None
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{model}/resolve/{revision}/{name}")
    token = os.environ.get("HF_TOKEN")
    if token:
        # Only for the hub itself: it redirects to a store that must not see the token.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            raw: bytes | None = answer.read(_LARGEST_BYTES)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise PlanError(
                [f"{model}: {endpoint} refuses access ({error.code}): accept the model's terms, and set HF_TOKEN"]
            ) from error
        if error.code != 404:
            raise PlanError([f"{model}: {endpoint} answered {error.code} for {name}: try again later"]) from error
        raw = None
    except OSError as error:
        raise PlanError(
            [
                f"{model}: {endpoint} cannot be reached ({error}): set HF_ENDPOINT, or name a directory with its config.json"
            ]
        ) from error
    if _COMMIT.fullmatch(revision):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{name}.{os.getpid()}")
        part.write_bytes(raw or b"")  # an empty file: the model has none
        part.replace(kept)
    return raw


def _from_s3(address: str, name: str) -> bytes | None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    key = f"{prefix.rstrip('/')}/{name}".lstrip("/")
    try:
        return bytes(boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read(_LARGEST_BYTES))
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
            return None
        raise PlanError(
            [f"{address}: S3 answered: {error}: check the bucket and the controller's credentials"]
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise PlanError([f"{address}: S3 cannot be asked: {error}"]) from error
