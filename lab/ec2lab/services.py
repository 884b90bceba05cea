"""The lab's stand-ins for AWS and Let's Encrypt: moto's EC2/S3 API, instance metadata and Pebble, all on the bridge's address."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import os
import ssl
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ec2lab import imds, machine, process
from ec2lab.model import (
    ACME_MANAGEMENT_PORT,
    ACME_PORT,
    DNS_MANAGEMENT_PORT,
    DNS_PORT,
    EC2_PORT,
    IMDS_PORT,
    Host,
    Lab,
    Topology,
)
from ec2lab.report import LabError

START_TIMEOUT_S = 60
STACK_TAG = "ec2-inference"


def start(lab: Lab) -> None:
    """Start the services that do not run yet. Does not wait; see wait_ready."""
    address = lab.address()
    _write_acme_config(lab)
    challtestsrv = [
        "pebble-challtestsrv",
        "-dns01",
        f"{address}:{DNS_PORT}",
        "-management",
        f"{address}:{DNS_MANAGEMENT_PORT}",
    ]
    challtestsrv += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv4", "", "-defaultIPv6", ""]
    commands = {
        "moto": [
            sys.executable,
            str(Path(imds.__file__).with_name("ec2.py")),
            "--address",
            address,
            "--port",
            str(EC2_PORT),
        ],
        "imds": [sys.executable, str(Path(imds.__file__)), "--address", address, "--port", str(IMDS_PORT)],
        "dns": challtestsrv,
        "acme": [
            "pebble",
            "-config",
            str(lab.directory / "acme" / "pebble.json"),
            "-dnsserver",
            f"{address}:{DNS_PORT}",
            "-strict",
        ],
    }
    for name, argv in commands.items():
        record = lab.directory / f"{name}.pid"
        if process.running(record) is None:
            # Pebble rejects some nonces and delays answers on purpose. This stays on, because certbot has to cope with it.
            process.start(
                argv, record, lab.directory / "log" / f"{name}.log", {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
            )


def wait_ready(lab: Lab, topology: Topology) -> None:
    """Wait until all services answer. Gives the lab's names to Pebble's DNS server, and Pebble's root certificate to the checkout."""
    _wait(lab, "moto", f"http://{lab.address()}:{EC2_PORT}/moto-api/config")
    _wait(lab, "imds", f"http://{lab.address()}:{IMDS_PORT}/lab/calls")
    _wait(lab, "dns", f"http://{lab.address()}:{DNS_MANAGEMENT_PORT}/", any_answer=True)
    by_name = {host.name: host for host in topology.hosts}
    for name, targets in topology.names.items():
        addresses = [lab.address(by_name[target]) for target in targets]
        _post(f"http://{lab.address()}:{DNS_MANAGEMENT_PORT}/clear-a", {"host": f"{name}.{lab.domain}"})
        _post(
            f"http://{lab.address()}:{DNS_MANAGEMENT_PORT}/add-a",
            {"host": f"{name}.{lab.domain}", "addresses": addresses},
        )
    root = _wait(lab, "acme", f"https://{lab.address()}:{ACME_MANAGEMENT_PORT}/roots/0").decode()
    _write_trust(lab, root)


def register(lab: Lab, topology: Topology) -> None:
    """Register each host as a running EC2 instance with its private address and tags. Idempotent."""
    ec2: Any = boto3.client("ec2", **client_options(lab))
    reservations = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["running"]}])[
        "Reservations"
    ]
    known = {instance["PrivateIpAddress"] for reservation in reservations for instance in reservation["Instances"]}
    missing = [host for host in topology.hosts if lab.address(host) not in known]
    if not missing:
        return
    subnets = ec2.describe_subnets(Filters=[{"Name": "cidr-block", "Values": [str(lab.network())]}])["Subnets"]
    if subnets:
        subnet_id = subnets[0]["SubnetId"]
    else:
        vpc = ec2.create_vpc(CidrBlock=str(lab.network()))["Vpc"]
        subnet_id = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock=str(lab.network()))["Subnet"]["SubnetId"]
    image_id = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for host in missing:
        tags = {"Name": host.name, "Stack": STACK_TAG, "Environment": "lab", "Tier": ",".join(host.tiers)}
        ec2.run_instances(
            ImageId=image_id,
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet_id,
            PrivateIpAddress=lab.address(host),
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}],
        )


def instances(lab: Lab, topology: Topology) -> tuple[Host, ...]:
    """A host for each of the stack's running instances in the lab's network, with its name and tiers, in the order of their addresses."""
    ec2: Any = boto3.client("ec2", **client_options(lab))
    running = [{"Name": "instance-state-name", "Values": ["running"]}]
    reservations = ec2.describe_instances(Filters=running)["Reservations"]
    network, found = lab.network(), []
    for instance in (row for reservation in reservations for row in reservation["Instances"]):
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
        address = ipaddress.IPv4Address(instance["PrivateIpAddress"])
        if tags.get("Stack") != STACK_TAG or address not in network:
            continue
        tiers = tuple(tags["Tier"].split(","))
        # The engine's image has all that the others' have.
        image = next(topology.images[tier] for tier in ("vllm", "proxy", "nginx") if tier in tiers)
        # Lab.address adds ten.
        found.append(Host(name=tags["Name"], image=image, tiers=tiers, index=int(address) - int(network[10])))
    return tuple(sorted(found, key=lambda host: host.index))


def client_options(lab: Lab) -> dict[str, str]:
    """boto3 client arguments that reach the lab's API."""
    return {
        "endpoint_url": f"http://{lab.address()}:{EC2_PORT}",
        "region_name": "us-east-1",
        "aws_access_key_id": "lab",
        "aws_secret_access_key": "secret-of-the-lab",
    }


def stop(lab: Lab) -> None:
    """End the services."""
    for name in ("moto", "imds", "dns", "acme"):
        process.stop(lab.directory / f"{name}.pid")


def make_authority(lab: Lab) -> None:
    """Make a certificate authority for the ACME server's own HTTPS, as with a company's internal CA."""
    directory = lab.directory / "acme"
    if (directory / "key.pem").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{lab.name} ACME endpoint CA")])
    ca_key = ec.generate_private_key(ec.SECP256R1())
    template = (
        x509.CertificateBuilder()
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365))
    )
    ca = (
        template.subject_name(name)
        .issuer_name(name)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(_ca_usage(), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(f"acme.{lab.domain}"), x509.IPAddress(ipaddress.ip_address(lab.address()))]
    leaf = (
        template.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"acme.{lab.domain}"[:64])]))
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (directory / "cert.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(directory / "key.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
        handle.write(secret)


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _write_acme_config(lab: Lab) -> None:
    directory = lab.directory / "acme"
    settings = {
        "listenAddress": f"{lab.address()}:{ACME_PORT}",
        "managementListenAddress": f"{lab.address()}:{ACME_MANAGEMENT_PORT}",
        "certificate": str(directory / "cert.pem"),
        "privateKey": str(directory / "key.pem"),
        "httpPort": 80,
        "tlsPort": 443,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
        # Pebble's own are valid for five years.
        "certificateValidityPeriod": 90 * 24 * 3600,
    }
    (directory / "pebble.json").write_text(json.dumps({"pebble": settings}))


def _write_trust(lab: Lab, root: str) -> None:
    """Add Pebble's root certificate to those of earlier starts. Each start makes a new one, and hosts may still serve earlier certificates."""
    roots = lab.client / "acme-roots.pem"
    text = roots.read_text() if roots.exists() else ""
    if root not in text:
        roots.write_text(text + root)
    (lab.client / "ca-bundle.pem").write_text(machine.ca_bundle().read_text().rstrip("\n") + "\n" + roots.read_text())


def _wait(lab: Lab, name: str, url: str, *, any_answer: bool = False) -> bytes:
    """Wait until `url` answers, and return the body."""
    context = ssl.create_default_context(cafile=lab.directory / "acme" / "ca.pem") if url.startswith("https") else None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with _opener(context).open(url, timeout=5) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError:
            if any_answer:
                return b""
        except (OSError, http.client.HTTPException):
            pass
        if process.running(lab.directory / f"{name}.pid") is None:
            break
        time.sleep(0.1)
    log = lab.directory / "log" / f"{name}.log"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise LabError(f"the lab's {name} server does not answer at {url}; its log ({log}) ends:\n{tail}")


def _post(url: str, data: dict[str, Any]) -> None:
    _opener(None).open(urllib.request.Request(url, data=json.dumps(data).encode()), timeout=5).close()


def _opener(context: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    # Not through the machine's HTTP proxy: these servers are on the machine's own bridge.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)
