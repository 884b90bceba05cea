"""Makes `ansible-playbook` cheaper in the lab, whose tests start it a hundred times. It runs the same tasks.

1. Ansible follows the imports of each module that it sends, anew in each run: a quarter of a short run's CPU time. What it
   finds depends on what is installed beside it, so all runs share one directory there; Ansible itself locks each file of it.
2. Each of the processes that it forks, one a task and host, pays for the cyclic garbage collector, which finds next to nothing.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: kept_modules
type: aggregate
short_description: shares between runs what Ansible puts together of its modules
description:
  - Keeps the modules that Ansible has put together for hosts in a directory that outlives the run, and collects garbage rarely.
options: {}
"""
# Objects that may be added before the youngest are looked at, and how seldom older ones are; Python's own are 700, 10, 10.
GC_THRESHOLD = (200_000, 20, 100)


class CallbackModule(CallbackBase):
    """Listens to nothing: what it does is done when Ansible loads it, before the first task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kept_modules"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        gc.set_threshold(*GC_THRESHOLD)
        kept = Path(sys.prefix, "ansible-modules")
        kept.mkdir(mode=0o700, exist_ok=True)
        # Where ansible.executor.module_common looks. The directory around it is the run's own, and goes with it; a link's target stays.
        with contextlib.suppress(FileExistsError):
            Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache").symlink_to(kept)
