"""Which engine hosts the proxies send requests to."""

from __future__ import annotations

from fleet_serving import fleet_serving
from test_fleet_rotation import FLEET, proxy


def test_hosts_whose_engines_serve_somebody() -> None:
    reports = [{**result, "item": host} for host, result in FLEET.items()]
    assert fleet_serving(reports) == {"hosts": ["engine1", "engine2"], "silent": []}
    drained = proxy(("engine1:a", "m", "drained"), ("engine2:a", "m", "down"), ("head:big", "n", "serving"))
    found = fleet_serving([{**drained, "item": "api1"}, {"item": "api2"}], {"head": ["head:big"], "rank": ["head:big"]})
    assert found == {"hosts": ["head", "rank"], "silent": ["api2"]}
