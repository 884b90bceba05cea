"""Ranges and forms of variables, which argument specs cannot hold: one row per variable, as keywords of a schema."""

from __future__ import annotations

from typing import Any

_PORT = {"minimum": 1024, "maximum": 65535}
_COUNT = {"minimum": 1}
_COUNT_OR_NONE = {"minimum": 0}
_SECONDS = {"minimum": 1, "maximum": 604_800}
_MEGABYTES = {"minimum": 1, "maximum": 1024}
_NETWORK = {"format": "network"}
_HOST_NAME = {
    "pattern": r"^(?=.{1,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
    "x-words": "be a host name, such as llm.example.com",
}
_URL = {
    "pattern": r"^(|https?://[^\s/]+\S*)$",
    "x-words": "be an address that begins with http:// or https://",
    "x-address": True,
}
_EMAIL = {"pattern": r"^(|[^@\s]+@[^@\s.]+(\.[^@\s.]+)+)$", "x-words": "be an e-mail address, such as ops@example.com"}
_MODEL = {
    "pattern": r"^(/\S+|s3://[a-z0-9][a-z0-9.-]+(/\S*)?|[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)$",
    "x-words": "be a directory (/srv/models/x), a hub id (Qwen/Qwen3-8B) or s3://bucket/prefix",
}
# The role gives it to the engines' user. Engines cannot see home directories and directories of temporary files.
_MODELS_DIRECTORY = {
    "pattern": r"^(?!/(bin|boot|dev|etc|home|lib\w*|proc|root|run|sbin|sys|tmp|usr|opt/vllm|var/tmp)(/|$))"
    r"(?!/(opt|srv|mnt|media|var|var/\w+|var/lib/vllm)/?$)(?!.*/\.{1,2}(/|$))(/[^/\x00-\x20\x7f]+)+/?$",
    "x-words": "be a directory of its own, such as /var/lib/vllm/models or /data/models, and none of the system's",
}
_STORE_DIRECTORY = {
    "pattern": r"^(|" + _MODELS_DIRECTORY["pattern"].removeprefix("^").removesuffix("/?$") + ")$",
    "x-words": "be empty, or a directory of its own without a / at its end, such as /mnt/instance-store, and none of the system's",
}
_FILE = {"pattern": r"^(|/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f])$", "x-words": "be the whole path of a file"}
# nginx's configuration has it without quotes.
_LISTED_FILE = {
    "pattern": r"^(/[A-Za-z0-9._-]+)+$",
    "x-words": "be the whole path of a file, in letters, digits and . _ -",
}
_SERVED_NAME = {"pattern": r"^[^\x00-\x1f\x7f]*$", "minLength": 1, "maxLength": 256, "format": "quoted"}
# What systemd's EnvironmentFile can hold. Values may be secrets.
_ENVIRONMENT = {
    "propertyNames": {"pattern": "[A-Za-z_][A-Za-z0-9_]*", "x-words": "have letters, digits and _ only"},
    "additionalProperties": {
        "type": "text",
        "pattern": r"^[^\x00\n\r]*$",
        "x-words": "be a single line",
        "x-hidden": True,
    },
}

# Old names of variables, with the new one.
RENAMED = {
    "proxy_between_chunks_timeout_s": "proxy_timeouts.between_chunks_s",
    "proxy_connect_timeout_s": "proxy_timeouts.connect_s",
    "proxy_first_byte_timeout_s": "proxy_timeouts.first_byte_s",
    "proxy_total_timeout_s": "proxy_timeouts.total_s",
    "vllm_drain_timeout": "vllm_drain_timeout_s",
    "vllm_shutdown_timeout": "vllm_shutdown_timeout_s",
    "vllm_start_timeout": "vllm_start_timeout_s",
    "vllm_watchdog_timeout": "vllm_watchdog_timeout_s",
}

# The rules of a variable by its path; [] means each item of a list.
RULES: dict[str, dict[str, Any]] = {
    "nginx_certbot_acme_ca_bundle": _FILE,
    "nginx_certbot_acme_directory": _URL,
    "nginx_certbot_allow_cidrs[]": _NETWORK,
    "nginx_certbot_allow_files[]": _LISTED_FILE,
    "nginx_certbot_body_limit_mb": _MEGABYTES,
    "nginx_certbot_certificates[].arn": {
        "pattern": r"^arn:aws[a-z-]*:(secretsmanager|acm):[a-z0-9-]+:\d{12}:\S+$",
        "x-words": "be the ARN of a secret or of a certificate in ACM",
    },
    "nginx_certbot_certificates[].domains[]": _HOST_NAME,
    "nginx_certbot_certificates[].key_pem": {"x-hidden": True},
    "nginx_certbot_certificates[].name": {
        "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        "maxLength": 64,
        "x-words": "have lower-case letters, digits and - only",
    },
    "nginx_certbot_certificates[].profile": {"pattern": r"^[A-Za-z0-9_.-]*$", "x-words": "be the name of a profile"},
    "nginx_certbot_client_ca_file": {**_LISTED_FILE, "pattern": r"^(|(/[A-Za-z0-9._-]+)+)$"},
    "nginx_certbot_connections_per_ip": _COUNT_OR_NONE,
    "nginx_certbot_key_connections": _COUNT_OR_NONE,
    "nginx_certbot_deny_cidrs[]": _NETWORK,
    "nginx_certbot_deny_files[]": _LISTED_FILE,
    "nginx_certbot_domains[]": _HOST_NAME,
    "nginx_certbot_email": _EMAIL,
    "nginx_certbot_embeddings_timeout_s": _SECONDS,
    "nginx_certbot_environment": _ENVIRONMENT,
    "nginx_certbot_generation_timeout_s": _SECONDS,
    "nginx_certbot_hsts_max_age_s": _COUNT_OR_NONE,
    "nginx_certbot_key_requests_per_second": _COUNT_OR_NONE,
    "nginx_certbot_log_days": _COUNT,
    "nginx_certbot_log_size_mb": _COUNT,
    "nginx_certbot_maintenance_s": {"minimum": 0, "maximum": 604_800},
    "nginx_certbot_metrics_dir": {**_FILE, "x-words": "be the whole path of a directory"},
    "nginx_certbot_path_cidrs[].cidrs[]": _NETWORK,
    "nginx_certbot_path_cidrs[].path": {
        "pattern": r"^(/[A-Za-z0-9._~-]+)+$",
        "x-words": "be a path such as /v1/embeddings, without a final slash",
    },
    "nginx_certbot_public_addresses[]": {"format": "address"},
    "nginx_certbot_real_ip_from[]": {"format": "believed_network"},
    "nginx_certbot_real_ip_header": {
        "pattern": r"^(proxy_protocol|[A-Za-z][A-Za-z0-9-]*)$",
        "x-words": "be the name of a header, or proxy_protocol",
    },
    "nginx_certbot_renewal_failure_unit": {
        "pattern": r"^(|[A-Za-z0-9:_.@%-]+\.[a-z]+)$",
        "x-words": "be the whole name of a unit, such as page@%n.service",
    },
    "nginx_certbot_requests_burst": _COUNT_OR_NONE,
    "nginx_certbot_requests_per_second": _COUNT_OR_NONE,
    "nginx_certbot_short_timeout_s": _SECONDS,
    "nginx_certbot_shutdown_s": _SECONDS,
    "nginx_certbot_status_port": _PORT,
    "nginx_certbot_upstream_keepalive": _COUNT,
    "nginx_certbot_worker_connections": {"minimum": 64, "maximum": 1_000_000},
    "nginx_certbot_worker_processes": {"pattern": r"^(auto|[1-9]\d*)$", "x-words": "be auto or a number"},
    "nvidia_drivers_branch": {
        "pattern": r"^\d{3}(\.\d+){0,2}$",
        "x-words": "be a branch, such as 580, or a version, such as 580.126.09",
    },
    "nvidia_drivers_efa_sha256": {
        "pattern": r"^[0-9a-f]{64}$",
        "x-words": "be 64 hexadecimal digits",
    },
    "nvidia_drivers_efa_url": {
        "pattern": r"^(https?|file)://\S*[^\s/]$",
        "x-words": "be an address that begins with https://, http:// or file:// and does not end with /",
        "x-address": True,
    },
    "nvidia_drivers_efa_version": {
        "pattern": r"^\d+\.\d+\.\d+$",
        "x-words": "be a version, such as 1.50.0",
    },
    "nvidia_drivers_key.fingerprint": {
        "pattern": r"^[0-9A-F]{40}$",
        "x-words": "be 40 hexadecimal digits without spaces, in capitals",
    },
    "nvidia_drivers_metrics_dir": {**_FILE, "x-words": "be the whole path of a directory"},
    "nvidia_drivers_repository_url": {
        "pattern": r"^(https?|file)://\S*[^\s/]$",
        "x-words": "be an address that begins with https://, http:// or file:// and does not end with /",
        "x-address": True,
    },
    "proxy_admin_address": {"format": "address"},
    "proxy_admin_port": _PORT,
    "proxy_body_limit_mb": _MEGABYTES,
    "proxy_drain_timeout_s": _SECONDS,
    "proxy_keep_releases": _COUNT_OR_NONE,
    "proxy_pip_environment": _ENVIRONMENT,
    "proxy_port": _PORT,
    "proxy_shutdown_s": _SECONDS,
    "proxy_start_timeout_s": _SECONDS,
    "proxy_store_memory_mb": {"minimum": 16},
    "proxy_store_port": _PORT,
    "proxy_store_timeout_s": {"exclusiveMinimum": 0, "maximum": 60},
    "proxy_traces_endpoint": _URL,
    "proxy_traces_sample_ratio": {"minimum": 0, "maximum": 1},
    "proxy_usage_retention_days": {"minimum": 1, "maximum": 36_500},
    "proxy_workers": {"minimum": 0, "maximum": 64},
    "stack_address": {"type": "string", "format": "address"},
    "stack_batch": {
        "pattern": r"^([1-9]\d{0,3}|[1-9]\d?%|100%)$",
        "x-words": "be a number of hosts from 1, or a percentage such as 25%",
    },
    "stack_body_limit_mb": _MEGABYTES,
    "stack_canary": {"pattern": r"^\d{1,4}$", "x-words": "be a number of hosts"},
    "stack_canary_error_points": {"pattern": r"^\d{1,2}(\.\d+)?$", "x-words": "be a number from 0 to 99"},
    "stack_canary_min_requests": {"pattern": r"^[1-9]\d{0,8}$", "x-words": "be a whole number from 1"},
    "stack_canary_ratio": {"pattern": r"^[1-9]\d{0,2}(\.\d+)?$", "x-words": "be a number from 1"},
    "stack_canary_soak_s": {"pattern": r"^[1-9]\d{0,4}$", "x-words": "be a whole number of seconds from 1 to 99999"},
    "stack_drain_last": {
        "pattern": r"^(true|false)$",
        "x-words": "be true or false, as text (-e stack_drain_last=true)",
    },
    "stack_domain": {"type": "string", **_HOST_NAME},
    # An entry of a cluster has the rules of an engine besides (see with_rules).
    "vllm_clusters[].hosts": {"minItems": 1},
    "vllm_clusters[].master_port": {"minimum": 1024, "maximum": 65534},
    "vllm_drain_timeout_s": _SECONDS,
    "vllm_engines[].adapters[].model": _MODEL,
    "vllm_engines[].adapters[].name": _SERVED_NAME,
    "vllm_engines[].beside_port": _PORT,
    "vllm_engines[].environment": _ENVIRONMENT,
    "vllm_engines[].gpus": {"minItems": 1},
    "vllm_engines[].gpus[]": _COUNT_OR_NONE,
    "vllm_engines[].max_in_flight": _COUNT,
    "vllm_engines[].model": _MODEL,
    "vllm_engines[].port": _PORT,
    "vllm_engines[].served_model_name": _SERVED_NAME,
    "vllm_engines[].start_timeout_s": _SECONDS,
    "vllm_engines[].weight": {"exclusiveMinimum": 0, "maximum": 1000},
    "vllm_environment": _ENVIRONMENT,
    "vllm_fetch_environment": _ENVIRONMENT,
    "vllm_fetch_parallel_hosts": _COUNT_OR_NONE,
    # A systemd unit has it without quotes.
    "vllm_imds_url": {
        "pattern": r"^https?://[A-Za-z0-9.:\[\]-]+/?$",
        "x-words": "be an address such as http://169.254.169.254, without a path",
        "x-address": True,
    },
    "vllm_install_disk_gb": _COUNT_OR_NONE,
    "vllm_install_environment": _ENVIRONMENT,
    "vllm_instance_store": _STORE_DIRECTORY,
    "vllm_keep_releases": _COUNT_OR_NONE,
    # Auto Scaling's own rule, without what would need quotes.
    "vllm_lifecycle_hook": {
        "pattern": r"^[A-Za-z0-9_/-]{0,255}$",
        "x-words": "be the name of a lifecycle hook, in letters, digits and - _ /",
    },
    "vllm_models_dir": _MODELS_DIRECTORY,
    "vllm_notices_environment": _ENVIRONMENT,
    "vllm_shutdown_timeout_s": _SECONDS,
    "vllm_start_timeout_s": _SECONDS,
    "vllm_start_timeout_s_per_gb": _COUNT_OR_NONE,
    # The watchdog asks a quiet engine every 15 s.
    "vllm_watchdog_timeout_s": {"minimum": 30, "maximum": 604_800},
    "vllm_version": {"pattern": r"^\d+(\.\d+)+\S*$", "x-words": "be a version, such as 0.33.0"},
}


def with_rules(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a variable, or of a part of it by its path, with its rules."""
    as_engine = name.replace("vllm_clusters[]", "vllm_engines[]")
    found = {**schema, **RULES.get(name, RULES.get(as_engine, {}))}
    if "items" in found:
        found["items"] = with_rules(f"{name}[]", found["items"])
    if "properties" in found:
        found["properties"] = {
            inner: with_rules(f"{name}.{inner}", part) for inner, part in found["properties"].items()
        }
    return found
