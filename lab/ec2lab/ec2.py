"""AWS's API: moto's server, with what it lacks. Run as a program it serves until it is ended: ec2.py --address ADDRESS --port PORT"""

from __future__ import annotations

import argparse
import os
from typing import Any

# Read when moto is imported: Amazon's own policies are there.
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses import EC2Response
from moto.server import main


class PlacementGroups:
    """Placement groups, in the backend's own memory."""

    def _groups(self: Any) -> dict[str, Any]:
        return dict.setdefault(vars(self.ec2_backend), "placement_groups", {})

    def create_placement_group(self: Any) -> ActionResult:
        name, strategy = self._get_param("GroupName"), self._get_param("Strategy")
        tags = self._parse_tag_specification("placement-group").get("placement-group", {})
        pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
        group = {"GroupName": name, "Strategy": strategy, "State": "available", "Tags": pairs}
        PlacementGroups._groups(self)[name] = group
        return ActionResult({"PlacementGroup": group})

    def describe_placement_groups(self: Any) -> ActionResult:
        names = self._filters_from_querystring().get("group-name")
        groups = PlacementGroups._groups(self)
        return ActionResult({"PlacementGroups": [groups[name] for name in groups if not names or name in names]})

    def delete_placement_group(self: Any) -> ActionResult:
        if PlacementGroups._groups(self).pop(self._get_param("GroupName"), None) is None:
            raise EC2ClientError("InvalidPlacementGroup.Unknown", "The Placement Group is unknown.")
        return ActionResult({})


def complete() -> None:
    """Add to moto what it lacks."""
    for operation in ("create_placement_group", "describe_placement_groups", "delete_placement_group"):
        assert not hasattr(EC2Response, operation), f"moto has {operation} now: remove PlacementGroups"
        setattr(EC2Response, operation, getattr(PlacementGroups, operation))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", required=True)
    options = parser.parse_args()
    complete()
    main(["-H", options.address, "-p", options.port])
