"""One request's way, from what each host found."""

from __future__ import annotations

import json
from typing import Any

from request_trace import request_trace


def answer(*events: tuple[float, str, str], more: bool = False) -> dict[str, Any]:
    named = [
        {**dict(zip(("at_s", "tier", "what"), event, strict=True)), "ends": event[2] == "ended"} for event in events
    ]
    return {"rc": 0, "stdout": json.dumps({"events": named, "looked": ["the journal of proxy@*"], "more": more})}


def test_events_of_all_hosts_are_in_time_order_and_down_the_tiers() -> None:
    results = {
        "web1": answer((10.0004, "nginx", "POST /\x1b[2J"), (12.0, "nginx", "ended")),
        "engine1": answer((10.0, "vllm", "began"), (11.0, "vllm", "ended")),
        "api1": answer((10.0, "proxy", "began"), (12.0, "proxy", "ended")),
    }
    assert request_trace(results, "a", 24)["lines"] == [
        "time (UTC)               host     tier   what",
        "1970-01-01 00:00:10.000  web1     nginx  POST /?[2J",
        "1970-01-01 00:00:10.000  api1     proxy  began",
        "1970-01-01 00:00:10.000  engine1  vllm   began",
        "1970-01-01 00:00:11.000  engine1  vllm   ended",
        "1970-01-01 00:00:12.000  api1     proxy  ended",
        "1970-01-01 00:00:12.000  web1     nginx  ended",
    ]


def test_what_was_searched_and_what_could_not_be() -> None:
    results = {"api1": answer(), "web1": {"unreachable": True, "msg": "Connection refused\n"}}
    lines = request_trace(results, "a", 24)["lines"]
    assert lines == [
        "No host has a line of request a in the last 24 hours. Searched:",
        "  api1: the journal of proxy@*",
        "If it is older, set trace_hours. The id is in the response's header x-request-id.",
        "web1 could not be searched: Connection refused",
    ]


def test_an_id_of_many_requests() -> None:
    trace = request_trace({"api1": answer((1.0, "proxy", "x"), more=True)}, "a", 24)
    assert trace["lines"][-1] == "api1 has more of it: this id was used for many requests"
    assert trace["events"] == [{"host": "api1", "at_s": 1.0, "tier": "proxy", "what": "x", "ends": False}]
