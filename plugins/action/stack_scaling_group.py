"""Make an Auto Scaling group with its hooks, policies and schedules as they are wanted, set its number of hosts, or delete it."""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Runs on the controller. Always `changed`: called only for a group that differs (see plugin_utils/fleet/groups.py) or is in the way.

    The modules of amazon.aws cannot tell in check mode whether a group differs.
    """

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """With `state: absent` there is no group `name`, with `count` it gets so many hosts; else it is as `wanted` says."""
        super().run(tmp, task_vars)
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        if self._task.check_mode:
            return {"changed": True}
        args = self._task.args
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        try:
            client = boto3.client("autoscaling", region_name=region)
            its = {"AutoScalingGroupName": args["name"]}
            if args.get("state") == "absent":
                client.delete_auto_scaling_group(ForceDelete=True, **its)
            elif "count" in args:
                client.set_desired_capacity(DesiredCapacity=int(args["count"]), HonorCooldown=False, **its)
            else:
                _make(client, its, args)
        except (BotoCoreError, ClientError) as error:
            return {"failed": True, "msg": str(error)}
        return {"changed": True}


def _make(client: Any, its: dict[str, str], args: dict[str, Any]) -> None:
    wanted = args["wanted"]
    around = {
        "LaunchTemplate": {"LaunchTemplateName": args["template"], "Version": "$Default"},
        "VPCZoneIdentifier": ",".join(args["subnets"]),
    }
    rows = client.describe_auto_scaling_groups(AutoScalingGroupNames=list(its.values()))["AutoScalingGroups"]
    if not rows:
        # Closed at first: a host that came before the hooks would not wait for them. A run that is interrupted leaves it so, which the next one sees.
        target = {"ResourceId": args["name"], "ResourceType": "auto-scaling-group", "PropagateAtLaunch": True}
        tags = [target | {"Key": key, "Value": value} for key, value in args["tags"].items()]
        client.create_auto_scaling_group(MinSize=0, MaxSize=0, Tags=tags, **its, **around)
    for name, hook in wanted["hooks"].items():
        client.put_lifecycle_hook(LifecycleHookName=name, **its, **hook)
    for row in client.describe_policies(**its)["ScalingPolicies"]:
        if row["PolicyName"] not in wanted["policies"]:
            client.delete_policy(PolicyName=row["PolicyName"], **its)
    for name, policy in wanted["policies"].items():
        client.put_scaling_policy(
            PolicyName=name, PolicyType="TargetTrackingScaling", TargetTrackingConfiguration=policy, **its
        )
    for row in client.describe_scheduled_actions(**its)["ScheduledUpdateGroupActions"]:
        if row["ScheduledActionName"] not in wanted["schedules"]:
            client.delete_scheduled_action(ScheduledActionName=row["ScheduledActionName"], **its)
    for name, schedule in wanted["schedules"].items():
        client.put_scheduled_update_group_action(ScheduledActionName=name, **its, **schedule)
    sizes: dict[str, int] = {}
    now = (rows[0]["MinSize"], rows[0]["MaxSize"]) if rows else (0, 0)
    if not rows or now not in [tuple(size) for size in wanted["sizes"]]:
        sizes = {"MinSize": wanted["min"], "MaxSize": wanted["max"]}
        if now == (0, 0):
            sizes["DesiredCapacity"] = wanted["count"]
    client.update_auto_scaling_group(**its, **around, **sizes)
