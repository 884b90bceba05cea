"""Python imports this at the start of every process of an engine: server, core and workers.

On SIGUSR2 a process writes the stacks of all its threads to the journal, and goes on; on a crash in native code it does so before it
ends. Stacks are files, lines and functions: they hold no prompt and no secret. The watchdog sends the signal before it kills a hung
engine (engine_watchdog.py). Standard library only: it runs with the engine's Python.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import signal
import sys
from importlib.machinery import PathFinder

if sys.stderr is not None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)

# Python imports only the first module of this name. Another one, of the system or of the operator's PYTHONPATH, runs too.
_here = os.path.dirname(os.path.abspath(__file__))
_next = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != _here])
if _next is not None and _next.loader is not None:
    _next.loader.exec_module(importlib.util.module_from_spec(_next))
