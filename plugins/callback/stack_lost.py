"""Say what to do when hosts were lost in the middle of a run: then no task is left to say it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: stack_lost
type: aggregate
short_description: Say what to do about hosts that were lost in the middle of a run
description:
  - A host that cannot be reached any more ends a rolling update of one host at a time without a further task. This says how to go on.
requirements:
  - Enabled by C(callbacks_enabled) in ansible.cfg.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core ships no types
    """Writes a few lines after the recap, if a host was lost."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "stack_lost"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_stats(self, stats: Any) -> None:
        lost = sorted(stats.dark)
        if lost:
            self._display.display(
                f"{', '.join(lost)}: lost in the middle of this run; see the error above. What was begun there is unfinished, and the hosts after it "
                "were not touched. Once it can be reached again, run the same playbook again: it goes on where this run stopped. To go on without it, "
                f"add --limit 'all:!{':!'.join(lost)}'. If this run still holds the stack's lock, the next one takes it over or says what to do.",
                color="bright yellow",
            )
