"""The verdict on a canary, from what the proxies count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import proxy_metrics
import pytest
from canary_verdict import canary_verdict

LIMITS = {"min_requests": 20, "error_points": 1.0, "ratio": 2.0}
METRICS = """\
# HELP inference_proxy_requests_total Requests that have ended.
inference_proxy_requests_total{owner="a",model="m",engine="engine1:q",endpoint_class="chat",status="200",code="ok"} 10.0
inference_proxy_requests_total{owner="b",model="m",engine="engine1:q",endpoint_class="chat",status="502",code="engine_error"} 2.0
inference_proxy_requests_total{owner="b",model="m",engine="other",endpoint_class="chat",status="401",code="invalid_key"} 7.0
inference_proxy_time_to_first_token_seconds_bucket{owner="a",model="m",engine="engine1:q",endpoint_class="chat",le="0.1"} 9.0
inference_proxy_time_to_first_token_seconds_bucket{owner="a",model="m",engine="engine1:q",endpoint_class="chat",le="+Inf"} 10.0
inference_proxy_ready 1.0
"""


def counts(requests: int, failed: int = 0, first_s: str = "0.1", gap_s: str = "0.02") -> dict[str, Any]:
    edges = ("0.02", "0.1", "1.0", "+Inf")

    def buckets(value_s: str) -> dict[str, float]:
        return {edge: requests if float(edge) >= float(value_s) else 0 for edge in edges}

    return {"requests": requests, "failed": failed, "first_token": buckets(first_s), "inter_token": buckets(gap_s)}


def results(**hosts: dict[str, Any]) -> dict[str, Any]:
    return {host: {"rc": 0, "stdout": json.dumps(engines)} for host, engines in hosts.items()}


def verdict(ours: dict[str, Any], theirs: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    after = results(api1={"engine1:q": ours, "engine2:q": theirs, "other": counts(1000, 1000)})
    found: dict[str, Any] = canary_verdict(after, before or {}, ["engine1"], "vllm", LIMITS)
    return found


def test_hosts_that_do_alike_are_good() -> None:
    assert verdict(counts(100), counts(100)) == {
        "enough": True,
        "bad": [],
        "lines": [
            f"{name}: 100 requests, 0.0 % failed, p95 of the first token 0.096 s, of the inter-token time 0.019 s"
            for name in ("changed", "others")
        ],
    }


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (counts(100, failed=5), "5.0 % of their requests failed, and 0.0 % of the others'"),
        (counts(100, first_s="1.0"), "the 95th percentile of their first token is 0.955 s, and 0.096 s of the others'"),
        (counts(100, gap_s="0.1"), "the 95th percentile of their inter-token time is 0.096 s, and 0.019 s"),
        (counts(100, gap_s="+Inf"), "the 95th percentile of their inter-token time is 1.000 s, and 0.019 s"),
    ],
)
def test_what_is_worse_is_told_with_its_numbers(ours: dict[str, Any], said: str) -> None:
    (bad,) = verdict(ours, counts(100))["bad"]
    assert bad.startswith(said)


def test_errors_that_all_hosts_have_are_not_the_changes_fault() -> None:
    assert verdict(counts(100, failed=50), counts(100, failed=50))["bad"] == []


def test_too_few_requests_give_no_verdict() -> None:
    for ours, theirs in ((counts(19, failed=19), counts(100)), (counts(100, failed=9), counts(0))):
        assert (verdict(ours, theirs)["enough"], verdict(ours, theirs)["bad"]) == (False, [])


def test_only_what_was_counted_since_the_beginning_is_compared() -> None:
    before = results(api1={"engine1:q": counts(1000, failed=900, first_s="1.0"), "engine2:q": counts(50)})
    grown = counts(1100, failed=900, first_s="1.0")
    grown["first_token"]["0.1"] = 100
    assert verdict(grown, counts(150), before)["bad"] == []
    restarted = results(api1={"engine1:q": counts(100000), "engine2:q": counts(50)})
    assert verdict(counts(100, failed=5), counts(150), restarted)["bad"]


def test_proxies_are_compared_by_their_hosts() -> None:
    after = results(api1={"engine1:q": counts(100, failed=9)}, api2={"engine1:q": counts(100)})
    assert canary_verdict({**after, "api3": {"unreachable": True}}, {}, ["api1"], "proxy", LIMITS)["bad"]
    assert not canary_verdict(after, {}, ["api2"], "proxy", LIMITS)["bad"]


def test_a_workers_metrics_by_engine() -> None:
    found: dict[str, Any] = {}
    proxy_metrics.add(METRICS, found)
    proxy_metrics.add(METRICS, found)
    assert found["engine1:q"] == {
        "requests": 24,
        "failed": 4,
        "first_token": {"0.1": 18, "+Inf": 20},
        "inter_token": {},
    }
    assert found["other"]["requests"] == 14


def test_where_the_workers_show_their_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_metrics, "ROOT", tmp_path)
    assert proxy_metrics.urls() == []
    (tmp_path / "etc/proxy").mkdir(parents=True)
    for port in (9000, 9001):
        (tmp_path / f"run/proxy-{port}").mkdir(parents=True)
    text = 'a: 1\nadmin:\n  address: "127.0.0.1"\n  port_offset: 500\n'
    (tmp_path / "etc/proxy/config.yml").write_text(text)
    assert proxy_metrics.urls() == ["http://127.0.0.1:9500/metrics", "http://127.0.0.1:9501/metrics"]
