"""Two engines on one host, after a change, a refused change and a rollback."""

import json
import urllib.error
import urllib.request

import pytest

testinfra_hosts = ["ssh://engine1"]

ENGINES = {"local": 8000, "bucket": 8001}
MODELS = {"local": "tiny-local", "bucket": "tiny-qwen3"}


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def call(host, engine, path, body=None):
    address = host.interface("host0").addresses[0]
    data = f"--json '{json.dumps(body)}'" if body else ""
    return host.check_output(f"curl --silent --show-error --fail {data} http://{address}:{ENGINES[engine]}{path}")


def test_runs_at_boot_too(host, engine):
    unit = host.service(f"vllm@{engine}")
    assert unit.is_running, host.check_output(f"journalctl --unit vllm@{engine} --no-pager --lines 40")
    assert unit.is_enabled


def test_generates(host, engine):
    answer = json.loads(
        call(
            host,
            engine,
            "/v1/completions",
            {"model": MODELS[engine], "prompt": "Hi", "max_tokens": 3, "ignore_eos": True},
        )
    )
    assert answer["usage"]["completion_tokens"] == 3


def test_each_engine_has_one_cache_which_it_keeps_through_a_change_of_its_options(host, engine):
    (cache,) = [name for name in host.file("/var/lib/vllm/cache").listdir() if name.startswith(f"{engine}-")]
    pid = host.check_output(f"systemctl show --property MainPID --value vllm@{engine}")
    environment = host.file(f"/proc/{pid}/environ").content_string.split("\0")
    assert f"VLLM_CACHE_ROOT=/var/lib/vllm/cache/{cache}" in environment
    assert host.file(f"/var/lib/vllm/cache/{cache}").mode & 0o077 == 0


def test_listens_on_the_private_address_only(host, engine):
    port = ENGINES[engine]
    assert not host.socket(f"tcp://127.0.0.1:{port}").is_listening
    assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_unit_is_hardened(host, engine):
    report = host.check_output(f"systemd-analyze security --no-pager vllm@{engine} | tail -n 1")
    assert float(report.split(":")[1].split()[0]) <= 3.0, report


def test_runs_as_its_own_user(host, engine):
    pid = host.check_output(f"systemctl show --property MainPID --value vllm@{engine}")
    assert host.check_output(f"stat --format %U /proc/{pid}") == "vllm"


def test_memory_shared_between_ranks_is_private(host, engine):
    assert not [name for name in host.file("/dev/shm").listdir() if name.startswith("vllm_dist_")]


def test_environment_arrives_as_written(host):
    pid = host.check_output("systemctl show --property MainPID --value vllm@local")
    environment = host.file(f"/proc/{pid}/environ").content_string.split("\0")
    assert 'LAB_SECRET=s3cret "quoted" $HOME \\ end' in environment
    assert "VLLM_HTTP_TIMEOUT_KEEP_ALIVE=120" in environment


def test_secrets_are_private(host):
    for path, mode in {"/etc/vllm/fetch.env": 0o600, "/opt/vllm/current/engines/local.env": 0o640}.items():
        file = host.file(path)
        assert (file.user, file.mode) == ("root", mode), path
    assert not host.run("journalctl --no-pager | grep --quiet 's3cre[t]'").succeeded


def test_model_from_s3_has_a_directory_of_its_own(host):
    models = [name for name in host.file("/var/lib/vllm/models").listdir() if not name.startswith(".")]
    assert len(models) == 1, models
    assert models[0].startswith("models--tiny-qwen3@")


def test_previous_release_is_current_again(host):
    current, previous = (host.check_output(f"readlink /opt/vllm/{name}") for name in ("current", "previous"))
    assert host.file(f"{current}/.proven").exists
    assert host.file(f"{previous}/.proven").exists
    options = host.file("/opt/vllm/current/engines/local.yml").content_string
    assert "max-num-seqs: 4" in options
    assert "999999" not in options


def test_a_restarted_engine_has_the_adapters_of_its_release(host):
    models = json.loads(call(host, "local", "/v1/models"))["data"]
    assert {model["id"]: model["root"] for model in models if model["parent"]} == {"sql": "/srv/adapters/sql"}


def test_only_the_engine_s_own_host_changes_its_adapters(host):
    address, port = host.interface("host0").addresses[0], ENGINES["local"]
    request = urllib.request.Request(
        f"http://{address}:{port}/v1/unload_lora_adapter", b'{"lora_name": "sql"}', {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)
