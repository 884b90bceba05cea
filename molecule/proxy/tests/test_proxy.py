"""Two workers on one host, after changes of settings, a new release and a release that was rolled back."""

import json

import httpx2
import pytest
from helpers.stack import CLIENT, MODEL

testinfra_hosts = ["ssh://api1"]

# More than WatchdogSec= and a start take, on a busy machine.
RESTARTED_S = 300


@pytest.fixture(params=[9000, 9001])
def port(request):
    return request.param


@pytest.fixture
def api(host):
    return host


@pytest.fixture
def key():
    return (CLIENT / "api-key").read_text().strip()


def address(api):
    return next(a for a in api.interface("host0").addresses if ":" not in a)


def call(api, port, path, key=None, body=None):
    """Status and JSON body. Asked from the machine: on the host, sudo would log a command with a key in it."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"http://{address(api)}:{port}{path}"
    answer = httpx2.request("POST" if body else "GET", url, headers=headers, json=body, timeout=60)
    return answer.status_code, answer.json()


def test_runs_at_boot_too(api, port):
    unit = api.service(f"proxy@{port}")
    assert unit.is_running, api.check_output(f"journalctl --unit proxy@{port} --no-pager --lines 40")
    assert unit.is_enabled


def test_both_workers_run_the_release_that_was_kept(api, port):
    status, ready = call(api, port, "/health/ready")
    assert (status, ready["version"], ready["config_error"]) == (200, "0.2.0", None)
    assert api.check_output("basename $(readlink /opt/proxy/current)") == ready["release"]
    assert api.check_output("basename $(readlink /opt/proxy/previous)").startswith(("0.1.0-", "0.2.0-"))


def test_releases_share_what_they_need(api):
    # Pruning removed the old release and the unused environment; 0.3.0 was installed afterwards.
    assert {name.split("-")[0] for name in api.check_output("ls /opt/proxy/releases").split()} == {
        "0.1.0",
        "0.2.0",
        "0.3.0",
    }
    assert len(api.check_output("ls /opt/proxy/venvs").split()) == 1


def test_generates(api, port, key):
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 3, "ignore_eos": True}
    status, answer = call(api, port, "/v1/completions", key, body)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 3


def test_keys(api, port, key):
    status, answer = call(api, port, "/v1/completions", "wrong" * 8, {"model": MODEL})
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    status, answer = call(api, port, "/v1/models", key)
    assert [card["id"] for card in answer["data"]] == [MODEL]


def test_workers_count_a_limit_together(api, key):
    ask = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    found = [call(api, 9000 + n % 2, "/v1/completions", f"{key}-limited", ask)[0] for n in range(8)]
    assert sorted(found) == 5 * [200] + 3 * [429]


def test_the_store_is_hardened_and_keeps_a_hash_only(api):
    unit = api.service("proxy-store")
    assert unit.is_running, api.check_output("journalctl --unit proxy-store --no-pager --lines 40")
    assert unit.is_enabled
    assert not api.service("redis-server").is_running
    assert api.socket(f"tcp://{address(api)}:6379").is_listening
    assert not api.socket("tcp://127.0.0.1:6379").is_listening
    report = api.check_output("systemd-analyze security --no-pager proxy-store | tail -n 1")
    assert float(report.split(":")[1].split()[0]) <= 3.0, report
    password = api.file("/etc/proxy/store_password")
    assert (password.user, password.group, password.mode) == ("root", "ec2-inference-proxy", 0o640)
    assert password.content_string.strip() not in api.file("/etc/proxy-store/store.conf").content_string


def test_a_worker_can_be_looked_at_from_its_own_host_only(api, port, key):
    admin = port + 500
    assert not api.socket(f"tcp://{address(api)}:{admin}").is_listening
    code = "curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:"
    assert api.check_output(f"{code}{admin}/admin/engines") == "401"
    page = api.check_output(f"curl --silent http://127.0.0.1:{admin}/metrics")
    assert "inference_proxy_requests_total{" in page


def test_listens_on_the_private_address_only(api, port):
    assert api.socket(f"tcp://{address(api)}:{port}").is_listening
    assert not api.socket(f"tcp://127.0.0.1:{port}").is_listening
    assert not api.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_unit_is_hardened(api, port):
    report = api.check_output(f"systemd-analyze security --no-pager proxy@{port} | tail -n 1")
    assert float(report.split(":")[1].split()[0]) <= 3.0, report


def test_runs_as_its_own_user(api, port):
    pid = api.check_output(f"systemctl show --property MainPID --value proxy@{port}")
    assert api.check_output(f"stat --format %U /proc/{pid}") == "ec2-inference-proxy"


def test_no_key_in_clear_is_on_the_host(api, key):
    keys = api.file("/etc/proxy/keys.yml")
    assert (keys.user, keys.group, keys.mode) == ("root", "ec2-inference-proxy", 0o640)
    # A part of the key, written so that the pattern does not match this command in sudo's log.
    found = api.run(
        f"grep --recursive --files-with-matches '{key[7:19]}[{key[19]}]' /etc /opt /run/systemd /var/log || true"
    )
    assert found.stdout == ""
    assert not api.run(f"journalctl --no-pager | grep --quiet '{key[7:19]}[{key[19]}]'").succeeded


def test_requests_are_logged_as_json(api, port, key):
    request_id = f"asked-by-the-test-{port}"
    body = {"model": MODEL, "prompt": "something private", "max_tokens": 3, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
    httpx2.post(f"http://{address(api)}:{port}/v1/completions", headers=headers, json=body, timeout=60)
    line = api.check_output(f"journalctl --no-pager --output cat --unit proxy@{port} --grep {request_id}")
    record = json.loads(line)
    assert (record["key"], record["status"]) == ("demo", 200)
    assert record["engine"].startswith("engine1:")
    assert record["completion_tokens"] == 3
    assert "private" not in line


def test_a_frozen_worker_is_started_again(api):
    show = "systemctl show --property MainPID --value proxy@9001"
    before = api.check_output(show)
    api.check_output(f"kill -s STOP {before}")
    # The worker's connections end when it is killed; curl then retries until the next one listens.
    url = f"http://{address(api)}:9001/health/ready"
    waits = f"--retry 1000 --retry-all-errors --retry-delay 1 --max-time {RESTARTED_S} --retry-max-time {RESTARTED_S}"
    answered = api.run(f"curl --silent --show-error --fail --output /dev/null {waits} {url}")
    journal = api.check_output("journalctl --unit proxy@9001 --no-pager --lines 40")
    assert answered.succeeded, answered.stderr[-500:] + journal
    assert api.check_output(show) != before
    assert "watchdog" in journal
