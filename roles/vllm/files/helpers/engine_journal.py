"""What an engine's journal says: its own last error, how long each phase of its start took, and the size of its KV cache.

Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import re
from typing import Dict, List, Optional, Tuple

# What vLLM puts before each line: "(EngineCore pid=12) ERROR 11-26 17:40:01 [core.py:1200] ".
_PREFIX = re.compile(r"^(?:\([^)]*pid=\d+\) )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (?:\.\d+ )?\[[^\]]+\] ?)?")
# A traceback's last line, or a message of the parser of options.
_ERROR = re.compile(
    r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Failure)\b(?::|$)|Exception: |vllm serve: error: )"
)
# Messages of a process that only reports the failure of another one.
_SECOND_HAND = re.compile(
    r"root cause|Engine core initialization failed|EngineCore encountered an issue|EngineDeadError"
)
# systemd's line at the start of each run.
_BEGIN = re.compile(r"^(?:Starting|Started) .*vLLM engine ")
_MOST_LINES, _MOST_CHARACTERS = 4, 1000

# The phases of a start, by what vLLM logs of them.
_PHASES: List[Tuple[str, "re.Pattern[str]"]] = [
    ("weights", re.compile(r"Loading weights took ([\d.]+) seconds")),
    ("initialization", re.compile(r"init engine \(.*?\) took ([\d.]+) s")),
    ("of it compilation", re.compile(r"torch\.compile (?:took|takes) ([\d.]+) s in total")),
    ("of it CUDA graphs", re.compile(r"Graph capturing finished in ([\d.]+) secs")),
]

# "GPU KV cache size: 151,216 tokens", by each data parallel rank; and the memory of it, by each GPU.
_KV_TOKENS = re.compile(r"\bKV cache size: ([\d,]+) tokens")
_KV_GIB = re.compile(r"Available KV cache memory: ([\d.]+) GiB")


def _last_run(journal: str) -> List[str]:
    """The lines since the last start at which the engine itself logged something."""
    lines = journal.splitlines()
    begins = [number for number, line in enumerate(lines) if _BEGIN.match(line)]
    for begin in reversed(begins):
        run = lines[begin:]
        if any(_plain(line) != line or _ERROR.match(line) for line in run):
            return run
    return lines


def _plain(line: str) -> str:
    return _PREFIX.sub("", line, count=1)


def last_error(journal: str) -> Optional[str]:
    """The message of the error that ended the engine's last run: the original error, not those that followed from it."""
    plain = [_plain(line) for line in _last_run(journal)]
    found = [number for number, line in enumerate(plain) if _ERROR.match(line)]
    own = [number for number in found if not _SECOND_HAND.search(plain[number])]
    if not (own or found):
        return None
    number = (own or found)[-1]
    text = [plain[number]]
    # The further lines of an error are indented.
    for line in plain[number + 1 : number + _MOST_LINES]:
        if not line.startswith(" "):
            break
        text.append(line.strip())
    return " ".join(text)[:_MOST_CHARACTERS]


def phases_s(journal: str) -> Dict[str, float]:
    """Seconds of the phases that the last start logged. Ranks log the same phase each; the longest counts."""
    run = "\n".join(_last_run(journal))
    found = {name: [float(value) for value in pattern.findall(run)] for name, pattern in _PHASES}
    return {name: max(values) for name, values in found.items() if values}


def kv_cache(journal: str) -> Optional[Tuple[int, Optional[float]]]:
    """Tokens of the KV cache as the last start logged them, and its GiB on a GPU if they were logged; the least of several.

    None if the start logged no tokens.
    """
    run = "\n".join(_last_run(journal))
    tokens = [int(value.replace(",", "")) for value in _KV_TOKENS.findall(run)]
    gib = [float(value) for value in _KV_GIB.findall(run)]
    return (min(tokens), min(gib) if gib else None) if tokens else None
