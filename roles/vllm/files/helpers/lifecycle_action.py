#!/usr/bin/env python3
"""Complete or prolong the lifecycle hook that this instance's Auto Scaling group waits for before it terminates the instance.

    lifecycle_action.py complete  --hook vllm-drain --instance i-0abc --region eu-central-1
    lifecycle_action.py heartbeat …

With the instance's role, or the credentials of the environment. It runs in the engines' venv, which has boto3. Exit status 1 with a message
if it cannot.
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description="Complete or prolong this instance's lifecycle hook.")
    parser.add_argument("what", choices=("complete", "heartbeat"))
    for name in ("--hook", "--instance", "--region"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        print(f"the engines' venv lacks boto3 ({error}): add it to the lock that vllm_requirements names")
        return 1
    patience = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3})
    try:
        client = boto3.client("autoscaling", region_name=options.region, config=patience)
        found = client.describe_auto_scaling_instances(InstanceIds=[options.instance])["AutoScalingInstances"]
        if not found:
            print(f"{options.instance} is in no Auto Scaling group")
            return 1
        action = {
            "LifecycleHookName": options.hook,
            "AutoScalingGroupName": found[0]["AutoScalingGroupName"],
            "InstanceId": options.instance,
        }
        if options.what == "complete":
            client.complete_lifecycle_action(LifecycleActionResult="CONTINUE", **action)
        else:
            client.record_lifecycle_action_heartbeat(**action)
    except (BotoCoreError, ClientError) as error:
        print(error)
        return 1
    print(f"hook {options.hook} of group {action['AutoScalingGroupName']}: {options.what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
