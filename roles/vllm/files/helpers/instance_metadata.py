"""EC2's instance metadata, version 2: documents, read with a session token that is renewed.

Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import email.utils
import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Dict, Optional

TOKEN_S = 21600
TIMEOUT_S = 3.0
MOST_BYTES = 65536


class NoMetadata(Exception):
    """The service does not answer, or not as EC2's does; the text says how."""


@dataclass(frozen=True)
class Document:
    """A text, and when it was read by the service's own clock, in seconds since 1970: the host's clock may be wrong."""

    text: str
    at_s: float


class Metadata:
    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._token = ""
        self._renew_s = 0.0
        # The host's own link-local address: never through a proxy that the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Optional[Document]:
        """The document below /latest/meta-data/; None if there is none. Raises NoMetadata."""
        try:
            if time.monotonic() >= self._renew_s:
                self._renew()
            try:
                return self._read(path)
            except urllib.error.HTTPError as error:
                if error.code != 401:
                    raise
            # The token has ended early, as after a hibernation, during which monotonic clocks stand still.
            self._renew()
            return self._read(path)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # A path is named by its last part, as the service's own words name none.
            raise NoMetadata(f"{path.rpartition('/')[2]}: {error}") from error

    def _renew(self) -> None:
        self._renew_s = 0.0
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
        self._token = self._open("PUT", "/latest/api/token", headers).text
        self._renew_s = time.monotonic() + TOKEN_S / 2

    def _read(self, path: str) -> Optional[Document]:
        try:
            return self._open("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _open(self, method: str, path: str, headers: Dict[str, str]) -> Document:
        request = urllib.request.Request(self.url + path, headers=headers, method=method)
        with self._opener.open(request, timeout=TIMEOUT_S) as answer:
            text = answer.read(MOST_BYTES).decode(errors="replace").strip()
            return Document(text, _seconds(answer.headers.get("Date")))


def _seconds(date: Optional[str]) -> float:
    """A Date header in seconds since 1970; the host's own time without one."""
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return time.time()
