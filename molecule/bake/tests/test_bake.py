"""An image was made of the host, and a new instance of this image serves."""

from __future__ import annotations

import json
import os

import boto3

testinfra_hosts = ["ssh://builder1"]


def test_there_is_one_image_with_the_tags_of_its_fleet():
    ec2 = boto3.client("ec2", region_name=os.environ["AWS_REGION"])
    (image,) = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": ["engines-of-the-lab"]}])[
        "Images"
    ]
    assert image["State"] == "available"
    tags = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    assert (tags["Stack"], tags["Environment"]) == ("ec2-inference", "lab")


def test_an_instance_of_it_serves(host):
    address = host.interface("host0").addresses[0]
    body = json.dumps({"model": "tiny", "prompt": "Hi", "max_tokens": 3, "ignore_eos": True})
    answer = host.check_output(
        f"curl --silent --show-error --fail --json '{body}' http://{address}:8000/v1/completions"
    )
    assert json.loads(answer)["usage"]["completion_tokens"] == 3
