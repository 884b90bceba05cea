#!/usr/bin/env python3
"""ec2-inference-certificates: get and renew the certificates that nginx serves.

Installed by the nginx_certbot role. Used by the role, by ec2-inference-certbot.service and by operators:

    ec2-inference-certificates renew                  # those that are due
    ec2-inference-certificates renew --force          # all that come from the CA, for example after a key has leaked
    ec2-inference-certificates renew --force NAME

The role writes which certificates there are, and where each comes from, into certificates.json. Those of an ACME CA are certbot's, under
/etc/letsencrypt. Those that come from elsewhere are checked first, and lie under /etc/nginx/ec2-inference/certificates; so does one of the CA
that several hosts share through a secret. Nothing here changes nginx's configuration: ec2-inference-nginx does, and loads what is new.

Runs with the host's own Python (3.9 or newer) and its standard library; boto3 only for certificates that AWS keeps. Exit status: 0 done,
1 refused or failed (a message on stderr says why), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

HOME = Path("/etc/nginx/ec2-inference")
CERTIFICATES = HOME / "certificates.json"
ENVIRONMENT = HOME / "certbot.env"
ACCOUNT = HOME / "account.ini"
# Directories of certificates: certbot's, and of those that come from elsewhere.
LETSENCRYPT = Path("/etc/letsencrypt")
OWN = HOME / "certificates"
WEBROOT = Path("/var/lib/ec2-inference/acme")
NGINX_TOOL = Path("/usr/local/sbin/ec2-inference-nginx")
METRICS = "nginx_certbot.prom"
# An ACME server may refuse a nonce or be slow: certbot is run again after these pauses.
CERTBOT_PAUSES_S = (10, 60)
# But not if the CA has refused: it would again, and CAs limit how many validations may fail in an hour. certbot's words, or the CA's.
REFUSED = re.compile(
    "failed to authenticate|too many requests of a given type|will not issue for the identifier|lacks sufficient authorization"
    "|Certification Authority Authorization",
    re.IGNORECASE,
)
# What certbot prints of each name that the CA could not validate.
REFUSED_NAME = re.compile(r"Domain: +(?P<domain>\S+)\s+Type: +(?P<type>\S+)\s+Detail: +(?P<detail>.+)")
PEM = re.compile(r"-----BEGIN (?P<label>[A-Z0-9 ]+)-----.+?-----END (?P=label)-----", re.DOTALL)
NONE_YET = "there is none yet"
DAY_S = 24 * 3600
# How certbot answers the CA's challenges.
AUTHENTICATORS = {"http": "webroot", "route53": "dns-route53"}
# A host that asks the CA for a certificate that several share has so long for it: after that, another host may ask.
TURN_S = 3600
# How long a host that has no certificate waits for the one that another host asks for, and how often it looks.
PATIENCE_S, LOOK_S = 300, 5
# The system's certificate authorities: on Debian and Ubuntu, and on Amazon Linux.
SYSTEM_BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))


class Failed(Exception):
    """What went wrong and what to do about it."""


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program and return its output; a failure raises nothing."""
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)


# --- what is wanted ------------------------------------------------------------------------------------------------


def wanted() -> dict[str, Any]:
    """What the role wrote: the certificates, and how to ask the CA. Earlier releases of it had one certificate and no list."""
    if CERTIFICATES.exists():
        listed: dict[str, Any] = json.loads(CERTIFICATES.read_text())
        return listed
    return {"certificates": [{"name": "ec2-inference", "source": "acme", "domains": []}]}


def certificate_named(name: str) -> dict[str, Any]:
    """The certificate of this name that the role wants."""
    listed = wanted()["certificates"]
    for certificate in listed:
        if certificate["name"] == name:
            return dict(certificate)
    raise Failed(f"there is no certificate {name}: {CERTIFICATES} has {', '.join(one['name'] for one in listed)}")


def home_of(certificate: dict[str, Any]) -> Path:
    """The directory with the files of a certificate."""
    return (LETSENCRYPT / "live" if is_certbots(certificate) else OWN) / str(certificate["name"])


def is_certbots(certificate: dict[str, Any]) -> bool:
    """Does this host serve what its own certbot has got?"""
    return certificate["source"] == "acme" and not certificate.get("shared_arn")


def is_there(certificate: dict[str, Any]) -> bool:
    home = home_of(certificate)
    return (home / "fullchain.pem").exists() and (home / "privkey.pem").exists()


def environment() -> dict[str, str]:
    """This process's environment and the operator's settings."""
    values = dict(os.environ)
    if ENVIRONMENT.exists():
        for line in ENVIRONMENT.read_text().splitlines():
            name, has_value, value = line.partition("=")
            if has_value:
                values[name] = value
    return values


# --- what a certificate says ---------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What a certificate says of itself. Times are Unix times."""

    names: set[str]
    key_type: str
    begins: float
    ends: float
    subject: str
    issuer: str

    def left_s(self) -> float:
        return self.ends - time.time()

    def is_due(self) -> bool:
        """Is it time to renew? With a third of the lifetime left, or a half if that is ten days or less, as certbot 4 does.

        Older versions of certbot renew 30 days before the end, which is always for a certificate of a week.
        """
        lifetime_s = self.ends - self.begins
        return self.left_s() < lifetime_s / (2 if lifetime_s <= 10 * DAY_S else 3)

    def is_late(self) -> bool:
        """Should it have been renewed long ago?"""
        return self.left_s() < min((self.ends - self.begins) / 10, 7 * DAY_S)

    def expiry(self) -> str:
        lifetime_days = (self.ends - self.begins) / DAY_S
        return f"it expires in {max(self.left_s(), 0) / DAY_S:.1f} days, of {lifetime_days:.0f}"


def facts_of(pem: str) -> Facts:
    """Read the first certificate of a PEM text."""
    options = ("-startdate", "-enddate", "-subject", "-issuer", "-ext", "subjectAltName")
    told = run("openssl", "x509", "-noout", *options, stdin=pem)
    text = told.stdout
    lines = dict(re.findall(r"^(notBefore|notAfter|subject|issuer)=(.*)$", text, re.MULTILINE))
    if told.returncode or len(lines) < 4:
        raise Failed(f"openssl cannot read a certificate: {told.stderr.strip()}")
    key = run("openssl", "pkey", "-pubin", "-noout", "-text", stdin=public_key(pem)).stdout
    return Facts(
        {name.lower() for name in re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)},
        "ecdsa" if "ASN1 OID" in key else "rsa" if "Modulus" in key else "another",
        ssl.cert_time_to_seconds(lines["notBefore"]),
        ssl.cert_time_to_seconds(lines["notAfter"]),
        lines["subject"].strip(),
        lines["issuer"].strip(),
    )


def public_key(pem: str) -> str:
    """The public key of the first certificate of a PEM text."""
    return run("openssl", "x509", "-noout", "-pubkey", stdin=pem).stdout


def chain_on_disk(certificate: dict[str, Any]) -> str:
    return (home_of(certificate) / "fullchain.pem").read_text()


def covers(names: set[str], domain: str) -> bool:
    """Is the domain one of a certificate's names, or matched by a wildcard of it?"""
    return domain.lower() in names or "*." + domain.lower().partition(".")[2] in names


# --- certificates of an ACME CA ------------------------------------------------------------------------------------


def why_issue(certificate: dict[str, Any], settings: dict[str, Any]) -> str:
    """Why a certificate of the CA has to be issued now, or "good". The timer renews it in time."""
    facts = facts_of(chain_on_disk(certificate))
    domains = {domain.lower() for domain in certificate["domains"]}
    if facts.names != domains:
        return f"it is for {', '.join(sorted(facts.names))}; wanted: {', '.join(sorted(domains))}"
    if facts.key_type != certificate["key_type"]:
        return f"its key is {facts.key_type}; wanted: {certificate['key_type']}"
    renewal = LETSENCRYPT / f"renewal/{certificate['name']}.conf"
    stored = dict(re.findall(r"^(\w+)\s*=\s*(\S+)", renewal.read_text(), re.MULTILINE)) if renewal.exists() else {}
    if stored.get("server") != settings["server"]:
        return f"it comes from {stored.get('server', 'an unknown CA')}; wanted: {settings['server']}"
    if stored.get("required_profile", "") != certificate.get("profile", ""):
        told, asked = (text or "the CA's default" for text in (stored.get("required_profile"), certificate["profile"]))
        return f"its profile is {told}; wanted: {asked}"
    if stored.get("authenticator") != AUTHENTICATORS[certificate["challenge"]]:
        return f"its names are validated by {stored.get('authenticator')}; wanted: {AUTHENTICATORS[certificate['challenge']]}"
    # The timer renews much earlier: a certificate this old has a renewal that does not work.
    return f"{facts.expiry()}, and was not renewed" if facts.is_late() else "good"


def certbot(settings: dict[str, Any], *arguments: str) -> None:
    """Run certbot, up to three times. All that it prints goes to stderr: what the CA says is on its stdout."""
    values = environment()
    if settings.get("ca_bundle"):
        values["REQUESTS_CA_BUNDLE"] = settings["ca_bundle"]
        # Requests to Route 53 would have only the ACME server's authorities too.
        for bundle in SYSTEM_BUNDLES:
            if bundle.exists():
                values.setdefault("AWS_CA_BUNDLE", str(bundle))
    for pause_s in (*CERTBOT_PAUSES_S, None):
        answer = subprocess.run(
            ("certbot", *arguments, "--non-interactive"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=values,
            check=False,
        )
        print(answer.stdout.strip(), file=sys.stderr, flush=True)
        if answer.returncode == 0:
            return
        if REFUSED.search(answer.stdout):
            names = [
                f"{name['domain']}: {name['detail']} ({name['type']})" for name in REFUSED_NAME.finditer(answer.stdout)
            ]
            raise Failed(
                "the CA refused, so it was not asked again. "
                + ("\n".join(names) or "Its words are above.")
                + "\nMend the cause first: CAs limit how many refusals an account may have in an hour."
            )
        if pause_s is not None:
            time.sleep(pause_s)
    how = f"exit status {answer.returncode}" if answer.returncode > 0 else f"signal {-answer.returncode}"
    raise Failed(
        f"certbot failed three times ({how}): its words are above, and more is in /var/log/letsencrypt/letsencrypt.log"
    )


def issue(certificate: dict[str, Any], settings: dict[str, Any]) -> None:
    """Request a certificate, whatever certificate there is."""
    email, profile = settings.get("email"), certificate.get("profile")
    # The flags answer what certbot would ask about a certificate with other names, another CA or time left. The deploy hook is stored
    # with the certificate, so it also runs when an operator calls certbot.
    by_http = certificate["challenge"] == "http"
    certbot(
        settings,
        *("certonly", "--agree-tos", "--cert-name", certificate["name"]),
        *(("--webroot", "--webroot-path", str(WEBROOT)) if by_http else ("--dns-route53",)),
        # It has the secret of an external account, which a process's arguments would show.
        *(("--config", str(ACCOUNT)) if ACCOUNT.exists() else ()),
        *("--server", settings["server"], "--key-type", certificate["key_type"], "--force-renewal"),
        *("--renew-with-new-domains", "--break-my-certs", "--deploy-hook", f"{NGINX_TOOL} reload"),
        *(("--email", email) if email else ("--register-unsafely-without-email",)),
        *(("--required-profile", profile) if profile else ()),
        *(f"--domain={domain}" for domain in certificate["domains"]),
    )


def renew_by_certbot(certificate: dict[str, Any], settings: dict[str, Any], force: bool) -> None:
    """Renew a certificate of the CA if it is due; one that could not be issued yet is asked for again."""
    if not is_there(certificate):
        # certbot would issue one under another name beside it, each time anew.
        if (LETSENCRYPT / f"renewal/{certificate['name']}.conf").exists():
            raise Failed(
                f"it is gone from the disk: restore {LETSENCRYPT} from a backup, or run the playbook, which says more"
            )
        if "server" not in settings:
            raise Failed(f"{CERTIFICATES} does not say which CA to ask: run the playbook")
        issue(certificate, settings)
    elif force or facts_of(chain_on_disk(certificate)).is_due():
        forced = ("--force-renewal",) if force else ()
        certbot(settings, "renew", "--cert-name", certificate["name"], "--no-random-sleep-on-renew", *forced)


# --- certificates that come from elsewhere -------------------------------------------------------------------------


class Pair(NamedTuple):
    """A certificate with those of its issuers, leaf first, and its key: PEM texts."""

    chain: list[str]
    key: str

    def files(self) -> dict[str, str]:
        texts = {"fullchain.pem": "".join(self.chain), "privkey.pem": self.key}
        return {**texts, "chain.pem": "".join(self.chain[1:])} if len(self.chain) > 1 else texts


def pair_in(text: str, certificate: dict[str, Any]) -> Pair:
    """The certificate and the key in a PEM text, in any order. Raises Failed with everything that is wrong with them."""
    name = certificate["name"]
    blocks = [(found["label"], found[0] + "\n") for found in PEM.finditer(text)]
    certificates = [pem for label, pem in blocks if label == "CERTIFICATE"]
    keys = [pem for label, pem in blocks if label.endswith("PRIVATE KEY")]
    problems = []
    if not certificates:
        problems.append("it has no PEM certificate")
    if len(keys) != 1:
        problems.append(f"it has {len(keys) or 'no'} PEM private key{'s, and only one can be served' if keys else ''}")
    elif "ENCRYPTED" in keys[0]:
        problems.append("its key is encrypted: nginx needs it without a passphrase (openssl pkey -in KEY)")
    if problems:
        raise Failed(f"the certificate {name} cannot be served: {'; '.join(problems)}")
    public = run("openssl", "pkey", "-pubout", stdin=keys[0])
    if public.returncode:
        raise Failed(f"the certificate {name} cannot be served: openssl cannot read its key")
    leaves = [pem for pem in certificates if public_key(pem) == public.stdout]
    if not leaves:
        raise Failed(f"the certificate {name} cannot be served: its key belongs to none of its certificates")
    facts = facts_of(leaves[0])
    missing = [domain for domain in certificate["domains"] if not covers(facts.names, domain)]
    if missing:
        problems.append(f"it is for {', '.join(sorted(facts.names)) or 'no name'}, and not for {', '.join(missing)}")
    if facts.left_s() <= 0:
        problems.append("it has expired")
    if facts.begins > time.time():
        problems.append("it is not valid yet")
    if problems:
        raise Failed(f"the certificate {name} cannot be served: {'; '.join(problems)}")
    return Pair(chain_from(leaves[0], certificates), keys[0])


def chain_from(leaf: str, others: list[str]) -> list[str]:
    """The leaf and its issuers in the order in which servers have to send them, without the root."""
    by_subject = {facts_of(pem).subject: pem for pem in others}
    chain, facts = [leaf], facts_of(leaf)
    while facts.issuer != facts.subject and facts.issuer in by_subject:
        pem = by_subject.pop(facts.issuer)
        facts = facts_of(pem)
        if facts.issuer != facts.subject:
            chain.append(pem)
    return chain


def is_on_disk(certificate: dict[str, Any], pair: Pair) -> bool:
    """Is exactly this certificate with its key on the disk?"""
    home = home_of(certificate)
    return is_there(certificate) and all((home / name).read_text() == text for name, text in pair.files().items())


def write(certificate: dict[str, Any], pair: Pair) -> None:
    """Put a certificate and its key on the disk, both at once: the directory's name is a link to the newest one."""
    OWN.mkdir(mode=0o700, exist_ok=True)
    link = home_of(certificate)
    # Of one that the inventory has, also what it is compared by in later runs.
    files = {**pair.files(), **({"given": certificate["given"]} if "given" in certificate else {})}
    digest = sha256("".join(files.values()).encode()).hexdigest()[:12]
    home = OWN / f".{link.name}-{digest}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    for name, text in files.items():
        with os.fdopen(os.open(home / name, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)
    fresh = OWN / f".{link.name}.link"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(home.name)
    fresh.replace(link)
    for other in OWN.glob(f".{link.name}-" + "?" * 12):
        if other != home:
            shutil.rmtree(other)


@contextlib.contextmanager
def aws(arn: str, does: str) -> Iterator[Any]:
    """AWS's client for the service of an ARN. Raises Failed with AWS's words; `does` says what was asked of it."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise Failed(f"this host has no boto3, so AWS cannot be asked ({error}): run the playbook") from error
    os.environ.update(environment())
    _, _, service, region, *_ = arn.split(":")
    try:
        # Older versions of boto3 do not read the endpoint from the environment.
        yield boto3.client(service, region_name=region, endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
    except (BotoCoreError, ClientError) as error:
        raise Failed(f"AWS does not {does} {arn}: {error}") from error


def kept_by_aws(certificate: dict[str, Any]) -> str:
    """The PEM text of a certificate and its key that Secrets Manager or ACM keeps."""
    arn, passphrase = certificate["arn"], secrets.token_hex(32)
    with aws(arn, "give") as client:
        if certificate["source"] == "secrets_manager":
            return pem_of_secret(text_of_secret(client.get_secret_value(SecretId=arn)))
        exported = client.export_certificate(CertificateArn=arn, Passphrase=passphrase.encode())
    chain = exported["Certificate"] + "\n" + exported.get("CertificateChain", "")
    return chain + "\n" + decrypted(exported["PrivateKey"], passphrase)


def text_of_secret(secret: dict[str, Any]) -> str:
    return str(secret.get("SecretString") or secret["SecretBinary"].decode())


def pem_of_secret(text: str) -> str:
    """A secret is PEM text, or a JSON object whose values are."""
    try:
        values = json.loads(text)
    except ValueError:
        return text
    return "\n".join(str(value) for value in values.values()) if isinstance(values, dict) else text


def decrypted(key: str, passphrase: str) -> str:
    """A PEM key without its passphrase, which openssl reads from a pipe."""
    reader, writer = os.pipe()
    os.write(writer, passphrase.encode())
    os.close(writer)
    try:
        answer = subprocess.run(
            ("openssl", "pkey", "-passin", f"fd:{reader}"),
            input=key,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(reader,),
        )
    finally:
        os.close(reader)
    if answer.returncode:
        raise Failed(f"openssl cannot decrypt the key that ACM exported: {answer.stderr.strip()}")
    return answer.stdout


def why_replace(certificate: dict[str, Any]) -> str:
    """Why a certificate that comes from elsewhere has to be written, or "good"."""
    if certificate["source"] == "pem":
        given = home_of(certificate) / "given"
        same = given.exists() and given.read_text() == certificate["given"]
        return "good" if same else "the inventory has another one"
    pair = pair_in(kept_by_aws(certificate), certificate)
    return "good" if is_on_disk(certificate, pair) else f"{certificate['arn']} has another one"


# --- a certificate of the CA that several hosts share ----------------------------------------------------------------
# It lies in a secret of Secrets Manager. Whichever host finds it missing or due takes the turn, asks the CA, and writes it there; the others
# take it from there. So the CA, which limits how many certificates a set of names may have in a week, is asked once for all hosts.


class Shared(NamedTuple):
    """What the secret has: a certificate that can be served, for whatever names, and how it was asked for."""

    pair: Pair | None
    asked: dict[str, str]


def asked_for(certificate: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """What cannot be seen in a certificate, but makes another one of it."""
    return {"server": settings["server"], "profile": certificate.get("profile", "")}


def in_secret(certificate: dict[str, Any]) -> Shared:
    """What the hosts share. There is no pair before the first was written, or if it cannot be served."""
    arn = certificate["shared_arn"]
    with aws(arn, "give") as client:
        try:
            secret = client.get_secret_value(SecretId=arn)
        except client.exceptions.ResourceNotFoundException:
            # It has no value yet; or there is no such secret, which is said when it is to be written.
            return Shared(None, {})
    try:
        text = text_of_secret(secret)
        return Shared(pair_in(pem_of_secret(text), {**certificate, "domains": []}), asked_in(text))
    except (Failed, UnicodeDecodeError):
        return Shared(None, {})


def asked_in(text: str) -> dict[str, str]:
    """How the certificate in a secret was asked for; nothing if a person wrote it."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    asked = values.get("asked") if isinstance(values, dict) else None
    return asked if isinstance(asked, dict) else {}


def why_ask(certificate: dict[str, Any], settings: dict[str, Any], shared: Shared) -> str:
    """Why what the hosts share is not what this host wants, or "" if it is."""
    if shared.pair is None:
        return f"{certificate['shared_arn']} has none that can be served"
    facts, domains = facts_of(shared.pair.chain[0]), {domain.lower() for domain in certificate["domains"]}
    if facts.names != domains:
        return f"it is for {', '.join(sorted(facts.names))}; wanted: {', '.join(sorted(domains))}"
    if facts.key_type != certificate["key_type"]:
        return f"its key is {facts.key_type}; wanted: {certificate['key_type']}"
    if shared.asked != (wanted_of := asked_for(certificate, settings)):
        return f"it was asked for with {shared.asked}; wanted: {wanted_of}"
    return f"{facts.expiry()}, and was not renewed" if facts.is_late() else ""


def why_renew(shared: Shared, force: bool) -> str:
    """Why the timer or an operator has what the hosts share renewed, or ""."""
    if shared.pair is None:
        return "the shared secret has no certificate that can be served"
    return "forced" if force else "due" if facts_of(shared.pair.chain[0]).is_due() else ""


def why_share(certificate: dict[str, Any], settings: dict[str, Any]) -> str:
    """Why this host has to ask for a shared certificate, or to take it, or "good"."""
    shared = in_secret(certificate)
    if why := why_ask(certificate, settings, shared):
        return why
    assert shared.pair
    return "good" if is_on_disk(certificate, shared.pair) else f"{certificate['shared_arn']} has another one"


def takes_turn(certificate: dict[str, Any], settings: dict[str, Any], shared: Shared) -> bool:
    """Whether this host is the one to ask the CA.

    Secrets Manager refuses a second version with the same token and another text. So of all hosts that want the same instead of the same
    certificate, the first one has the turn, and keeps it for an hour.
    """
    wish = [
        shared.pair.chain[0] if shared.pair else "",
        sorted(certificate["domains"]),
        certificate["key_type"],
        asked_for(certificate, settings),
    ]
    token = sha256(json.dumps([*wish, int(time.time()) // TURN_S]).encode()).hexdigest()
    turn = {"SecretString": f"{socket.gethostname()} asks the CA", "VersionStages": ["ASKING"]}
    with aws(certificate["shared_arn"], "take a new version of") as client:
        try:
            client.put_secret_value(SecretId=certificate["shared_arn"], ClientRequestToken=token, **turn)
        except client.exceptions.ResourceExistsException:
            return False
    return True


def ask_for_all(certificate: dict[str, Any], settings: dict[str, Any]) -> None:
    """Ask the CA, and write what it issued into the secret and to this host's disk."""
    issue(certificate, settings)
    lineage = LETSENCRYPT / "live" / certificate["name"]
    texts = {"chain": (lineage / "fullchain.pem").read_text(), "key": (lineage / "privkey.pem").read_text()}
    pair = pair_in(texts["chain"] + texts["key"], certificate)
    text = json.dumps({**texts, "asked": asked_for(certificate, settings)})
    with aws(certificate["shared_arn"], "take a new version of") as client:
        client.put_secret_value(SecretId=certificate["shared_arn"], SecretString=text)
    write(certificate, pair)


def share(
    certificate: dict[str, Any], settings: dict[str, Any], why: Callable[[Shared], str], patience_s: float
) -> None:
    """Have what the hosts share on the disk; ask the CA first if `why` gives a reason and no other host asks it.

    A host that can serve what there is does not wait for one that asks: it takes the new one when it looks again.
    """
    until = time.monotonic() + patience_s
    while True:
        shared = in_secret(certificate)
        reason = why(shared)
        if reason and takes_turn(certificate, settings, shared):
            ask_for_all(certificate, settings)
            return
        if not reason or time.monotonic() >= until:
            break
        time.sleep(LOOK_S)
    if reason and (patience_s or shared.pair is None):
        raise Failed(
            f"{reason}, and another host has asked the CA within the last hour. Its words are in the playbook's output or in the journal of "
            "ec2-inference-certbot.service there; run this again afterwards"
        )
    assert shared.pair
    if not is_on_disk(certificate, shared.pair):
        # It may lack a name that only this host still wants.
        write(certificate, pair_in("".join(shared.pair.chain) + shared.pair.key, certificate))


# --- commands: each returns the word or line to print, which the role reads ------------------------------------------


def check() -> str:
    """Why each certificate that is wanted has to be got, as JSON by name; "good" if it need not.

    What is wanted comes on stdin, so that check mode asks for what the role would write. Those that are missing come first: until they are
    there, another one may stand in for them, which is got after them.
    """
    settings = json.load(sys.stdin)
    reasons = {}
    for certificate in settings["certificates"]:
        if not is_there(certificate):
            reasons[certificate["name"]] = NONE_YET
        elif is_certbots(certificate):
            reasons[certificate["name"]] = why_issue(certificate, settings)
        elif certificate["source"] == "acme":
            reasons[certificate["name"]] = why_share(certificate, settings)
        else:
            reasons[certificate["name"]] = why_replace(certificate)
    missing_first = sorted(reasons, key=lambda name: reasons[name] != NONE_YET)
    return json.dumps({name: reasons[name] for name in missing_first})


def examine(name: str) -> str:
    """Check the certificate and the key on stdin, and write nothing. `name` is a certificate's, followed by its domains."""
    given = json.load(sys.stdin)
    pair_in(given["pem"], {"name": name, "domains": given["domains"]})
    return "good"


def get(name: str) -> str:
    """Issue or fetch a certificate, or write the one on stdin, and load it."""
    certificate, settings = certificate_named(name), wanted()
    if is_certbots(certificate):
        issue(certificate, settings)
    elif certificate["source"] == "acme":
        share(certificate, settings, lambda shared: why_ask(certificate, settings, shared), PATIENCE_S)
    else:
        text = sys.stdin.read() if certificate["source"] == "pem" else kept_by_aws(certificate)
        write(certificate, pair_in(text, certificate))
    load()
    write_metrics({})
    return "got"


def renew(names: list[str], force: bool) -> str:
    """Renew what is due and load it, even if a deploy hook has failed. One that cannot be renewed does not stop the others."""
    settings = wanted()
    chosen = [certificate_named(name) for name in names] or settings["certificates"]
    failures: dict[str, str] = {}
    for certificate in chosen:
        try:
            renew_one(certificate, settings, force)
        except Failed as error:
            failures[certificate["name"]] = str(error)
    answer = load()
    write_metrics(failures)
    if failures:
        raise Failed("\n".join(f"certificate {name}: {words}" for name, words in failures.items()))
    return answer


def renew_one(certificate: dict[str, Any], settings: dict[str, Any], force: bool) -> None:
    if is_certbots(certificate):
        renew_by_certbot(certificate, settings, force)
        return
    if certificate["source"] == "acme":
        # What is wanted may be new, and other hosts may not know it yet: what can be served is only renewed here, and the playbook changes it.
        share(certificate, settings, lambda shared: why_renew(shared, force), 0)
        return
    if certificate["source"] != "pem":
        pair = pair_in(kept_by_aws(certificate), certificate)
        if not is_on_disk(certificate, pair):
            write(certificate, pair)
    facts = facts_of(chain_on_disk(certificate)) if is_there(certificate) else None
    if facts and facts.is_late():
        source = certificate.get("arn") or "the inventory (nginx_certbot_certificates)"
        raise Failed(f"{facts.expiry()}, and nothing here renews it: put a new one into {source}")


def load() -> str:
    """Let nginx serve what is on the disk."""
    answer = run(str(NGINX_TOOL), "reload", "--if-changed")
    if answer.returncode:
        raise Failed(answer.stderr.strip())
    return answer.stdout.strip()


def write_metrics(failures: dict[str, str]) -> None:
    """Write the certificates' times for node_exporter's textfile collector, all at once."""
    directory = Path(wanted().get("metrics_dir") or "/nowhere")
    if not directory.is_dir():
        return
    there = [one for one in wanted()["certificates"] if is_there(one)]
    facts = [(one, facts_of(chain_on_disk(one))) for one in there]
    gauges: dict[str, tuple[str, list[tuple[dict[str, Any], float]]]] = {
        "certificate_not_before_timestamp_seconds": (
            "Since when a certificate is valid.",
            [(o, f.begins) for o, f in facts],
        ),
        "certificate_not_after_timestamp_seconds": ("When a certificate expires.", [(o, f.ends) for o, f in facts]),
        "certificate_renewal_failed": (
            "Whether the last attempt to renew a certificate failed.",
            [(one, one["name"] in failures) for one in wanted()["certificates"]],
        ),
    }
    lines = []
    for gauge, (text, values) in gauges.items():
        lines += [f"# HELP nginx_certbot_{gauge} {text}", f"# TYPE nginx_certbot_{gauge} gauge"]
        for one, value in values:
            lines.append(f'nginx_certbot_{gauge}{{name="{one["name"]}",source="{one["source"]}"}} {int(value)}')
    fresh = directory / f"{METRICS}.tmp"
    fresh.write_text("\n".join(lines) + "\n")
    fresh.chmod(0o644)
    fresh.replace(directory / METRICS)


# --- the command line ----------------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], str]]] = {
    "check": ("say why each of the certificates on stdin has to be got, as JSON", lambda _: check()),
    "examine": ("check the certificate and key on stdin, and write nothing", lambda options: examine(options.name)),
    "get": ("issue or fetch a certificate, and load it", lambda options: get(options.name)),
    "renew": (
        "renew the certificates that are due, and load them",
        lambda options: renew(options.names, options.force),
    ),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ec2-inference-certificates", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=text) for name, (text, _) in COMMANDS.items()}
    for name in ("examine", "get"):
        parsers[name].add_argument("name")
    parsers["renew"].add_argument("names", nargs="*", metavar="NAME", help="only these")
    parsers["renew"].add_argument(
        "--force", action="store_true", help="even those that are not due, for example after a key has leaked"
    )
    return parser


def main() -> int:
    os.umask(0o022)
    options = arguments().parse_args()
    try:
        print(COMMANDS[options.command][1](options))
    except Failed as error:
        print(f"ec2-inference-certificates: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
