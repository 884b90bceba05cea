"""Make a launch template or its next version, or delete it. amazon.aws.ec2_launch_template knows no Elastic Fabric Adapters."""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Runs on the controller. Always `changed`: called only for a template that is missing or in the way, or whose hosts are about to be made."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """With `state: absent` there is no template `name`; else its default version is as the other arguments say (see `data`)."""
        super().run(tmp, task_vars)
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        if self._task.check_mode:
            return {"changed": True}
        args = self._task.args
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        try:
            ec2 = boto3.client("ec2", region_name=region)
            if args.get("state") == "absent":
                ec2.delete_launch_template(LaunchTemplateName=args["name"])
            else:
                _make(ec2, args["name"], args["tags"], data(args), args.get("digest") or "")
        except (BotoCoreError, ClientError) as error:
            return {"failed": True, "msg": str(error)}
        return {"changed": True}


def data(args: dict[str, Any]) -> dict[str, Any]:
    """The template's data. Without interfaces, whoever uses the template says the network."""
    found: dict[str, Any] = dict(args.get("data") or {})
    if found:
        found["SecurityGroupIds"] = args["groups"]
    if args["spot"]:
        found["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    if args["interfaces"]:
        where = {"SubnetId": args["subnet"], "Groups": args["groups"], "DeleteOnTermination": True}
        found["NetworkInterfaces"] = [interface | where for interface in args["interfaces"]]
        found["Placement"] = {"GroupName": args["placement_group"]}
    return found


def _make(ec2: Any, name: str, tags: dict[str, str], wanted: dict[str, Any], digest: str) -> None:
    """Make the template, or a version that is the default from now on."""
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    by_name = [{"Name": "launch-template-name", "Values": [name]}]
    said = {"VersionDescription": digest} if digest else {}
    if not ec2.describe_launch_templates(Filters=by_name)["LaunchTemplates"]:
        specification = [{"ResourceType": "launch-template", "Tags": pairs}]
        ec2.create_launch_template(
            LaunchTemplateName=name, LaunchTemplateData=wanted, TagSpecifications=specification, **said
        )
        return
    made = ec2.create_launch_template_version(LaunchTemplateName=name, LaunchTemplateData=wanted, **said)
    number = str(made["LaunchTemplateVersion"]["VersionNumber"])
    ec2.modify_launch_template(LaunchTemplateName=name, DefaultVersion=number)
