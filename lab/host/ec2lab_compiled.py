"""Keeps what a lab host's Python compiles from zip files, for all hosts of the machine and from run to run.

Ansible sends each task as a zip of sources, and Python keeps nothing of what it compiles from one: that is half
of a task's CPU time, and the lab runs thousands. For the same reason garbage is collected rarely. Loaded by a .pth
file beside it.
"""

import contextlib
import gc
import marshal
import os
import zipimport
from _blake2 import blake2b  # hashlib would load OpenSSL at each start
from importlib.util import MAGIC_NUMBER
from types import CodeType

DIRECTORY = "/var/cache/ec2lab-compiled"

# Private, so type stubs lack it, and there is no public way in. Debian 12's and 13's Python both have it.
_compile = zipimport._compile_source  # type: ignore[attr-defined]


def kept(path: str, source: bytes) -> CodeType:
    """zipimport's way to compile, unless the same source has been compiled by the same Python before."""
    name = os.path.join(DIRECTORY, blake2b(MAGIC_NUMBER + bytes(source), digest_size=20).hexdigest())
    with contextlib.suppress(OSError, EOFError, ValueError, TypeError), open(name, "rb") as file:
        known = marshal.load(file)
        if isinstance(known, CodeType):
            return known
    code: CodeType = _compile(path, source)
    # Only root may write there; others compile.
    with contextlib.suppress(OSError):
        partial = f"{name}.{os.getpid()}"
        with open(partial, "wb") as file:
            marshal.dump(code, file)
        os.replace(partial, name)
    return code


# As above: private, and there is no public way in.
zipimport._compile_source = kept  # type: ignore[attr-defined]
# A quarter of what the imports of a task still cost goes to a search for garbage that is not there.
gc.set_threshold(200_000, 20, 100)
