"""What preflight says of what is drained."""

from __future__ import annotations

from typing import Any

from drained_in_words import drained_in_words


def host(name: str, *lines: str, **variables: Any) -> dict[str, Any]:
    return {"inventory_hostname": name, "__stack_drained": {"stdout_lines": list(lines)}, **variables}


def test_hosts_that_will_end_and_drained_instances_are_named_with_their_ids() -> None:
    marker = "/etc/proxy/drained/engine2:qwen\tnew disk; by alice@ops1; since 2026-11-26T10:00:00Z"
    assert drained_in_words(
        [
            host("engine1", '/run/vllm/draining.json\t{"reason": "spot interruption"}', aws_instance_id="i-1"),
            host("engine2", aws_instance_id="i-2"),
            host("api1", marker),
            host("api2", marker, "/etc/proxy/drained/gone:x\t"),
        ]
    ) == [
        "instance i-1 (engine1) will end: spot interruption",
        "engine2:qwen of instance i-2 (engine2) is drained: new disk; by alice@ops1; since 2026-11-26T10:00:00Z (on api1, api2)",
        "gone:x is drained: its marker is empty (on api2)",
    ]


def test_hosts_that_were_not_asked_and_odd_notices_stop_nothing() -> None:
    odd = [host("engine1", "/run/vllm/draining.json\t[", "", "\t"), {"inventory_hostname": "api1"}]
    assert drained_in_words(odd)[0] == "engine1 will end: for a reason that cannot be read"
    assert drained_in_words([{"inventory_hostname": "api1", "__stack_drained": {"skipped": True}}]) == []
