"""Whether a secret can be guessed, and whether a client can send it. Messages never hold the secret itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

KEY_LENGTH_MIN = 32
# Random keys of that length have more different characters in any encoding.
KEY_VARIETY_MIN = 8
_INSTEAD = "`openssl rand -hex 32`, kept in the vault"


def flaws_of_key(secret: str) -> Iterator[str]:
    """What is wrong with a key that clients send in a header."""
    yield from flaws_of_password(secret)
    if secret != secret.strip():
        yield "begins or ends with a blank or a line's end, which no client sends: remove it (in YAML, quote the key)"
    elif not re.fullmatch(r"[!-~]*", secret):
        yield "has blanks, control characters or letters beyond ASCII, which no header can carry: use `openssl rand -hex 32`"


def flaws_of_password(secret: str) -> Iterator[str]:
    """Why a secret can be guessed; at most one reason."""
    if len(secret) < KEY_LENGTH_MIN:
        yield f"has {len(secret)} characters and can be guessed: use at least {KEY_LENGTH_MIN}, from {_INSTEAD}"
    elif re.search(r"change.?me", secret, re.IGNORECASE):
        yield f"is still that of an example: use one from {_INSTEAD}"
    elif len(set(secret)) < KEY_VARIETY_MIN:
        noun = "1 different character" if len(set(secret)) == 1 else f"{len(set(secret))} different characters"
        yield f"consists of {noun} and can be guessed: use one from {_INSTEAD}"
