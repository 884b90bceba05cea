"""A plugin of vLLM, by which ranks of an engine on CPU run on Ray. Its directory has to be on PYTHONPATH."""

from __future__ import annotations

import importlib.util


def platform() -> str | None:
    """The class of the platform; none where there is no Ray."""
    return "ray_on_cpu.platform.RayOnCpu" if importlib.util.find_spec("ray") else None
