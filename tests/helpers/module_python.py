"""A Python for Ansible's modules on hosts that are this machine."""

from __future__ import annotations

import sys
from pathlib import Path

# As if Python had been started with the module. The archive that a module brings has Ansible's source, which takes longer to compile than most
# modules to run; it is not looked at once `ansible` is imported.
PROGRAM = f"""#!{sys.executable}
import runpy, sys
del sys.argv[0], sys.path[0]
import ansible.module_utils
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def module_python(directory: Path) -> str:
    """Write the value of `ansible_python_interpreter` that runs modules with the installed `ansible`, which is compiled: in half the time."""
    path = directory / "module_python"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return str(path)
