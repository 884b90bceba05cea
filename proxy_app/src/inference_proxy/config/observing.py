"""Sections `admin`, `usage` and `traces`: how operators observe the proxy."""

import importlib
from typing import Annotated

from pydantic import Field, model_validator

from inference_proxy.config.types import AbsolutePath, Name, Strict

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AdminConfig(Strict):
    """The admin listener. Everything there needs the admin key, except /metrics on a loopback connection."""

    address: str = Field(
        default="127.0.0.1", description="Loopback, or a private address that monitoring can reach."
    )
    port_offset: int = Field(
        default=500,
        gt=-65536,
        lt=65536,
        description="Its port is the worker's own and this many: so every worker of a host has one.",
    )
    key_sha256: Digest | None = Field(
        default=None, description="Hash of the admin key, in hex. Without it only /metrics can be had."
    )


class UsageConfig(Strict):
    directory: AbsolutePath = Field(description="A directory that workers may write to.")
    # A hundred years: the calendar's range ends not far beyond that.
    retention_days: int = Field(default=400, gt=0, le=36_500, description="Days that usage is kept.")


class TracesConfig(Strict):
    """Traces, sent by OTLP. They need the packages of the extra `otel`."""

    endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] = Field(
        description="Where OTLP over HTTP is taken, such as http://127.0.0.1:4318/v1/traces."
    )
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="Share of requests without a traceparent that are traced."
    )
    service_name: Name = Field(default="inference-proxy", description="The service's name in traces.")

    @model_validator(mode="after")
    def _can_be_sent(self) -> "TracesConfig":
        try:
            importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ImportError as error:
            raise ValueError(f"{error}: install the extra `otel` (requirements-otel.txt)") from error
        return self
