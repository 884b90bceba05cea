"""Write the errors of NVIDIA GPUs as a file of Prometheus metrics: Xid messages of the kernel's log since the boot, and ECC errors."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

# Such as `NVRM: Xid (PCI:0000:00:1e): 79, pid=1234, GPU has fallen off the bus.`
XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)")
QUERY = ["driver_version", "pci.bus_id", "ecc.errors.corrected.volatile.total", "ecc.errors.uncorrected.volatile.total"]
WAIT_S = 20


def output(*command: str) -> str | None:
    """What a command prints; None if it fails or does not end."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def bus(address: str) -> str:
    """A PCI address in one form: the kernel writes 0000:00:1e, nvidia-smi 00000000:00:1E.0."""
    domain, number, device = address.lower().split(".")[0].rsplit(":", 2)
    return f"{int(domain, 16):04x}:{number}:{device}"


def xids(log: Iterable[str]) -> Counter[tuple[str, str]]:
    """How often each Xid was logged, by the GPU's address and the code."""
    return Counter((bus(found[1]), found[2]) for line in log if (found := XID.search(line)))


def lines(listed: str | None, log: str | None) -> Iterator[str]:
    """The metrics' lines, from nvidia-smi's table and the kernel's log; what could not be read is left out."""
    yield "# HELP nvidia_driver_up Whether nvidia-smi answers."
    yield "# TYPE nvidia_driver_up gauge"
    yield f"nvidia_driver_up {int(listed is not None)}"
    rows = [[cell.strip() for cell in row] for row in csv.reader((listed or "").splitlines()) if len(row) == len(QUERY)]
    if rows:
        yield "# HELP nvidia_driver_info The driver's version."
        yield "# TYPE nvidia_driver_info gauge"
        yield f'nvidia_driver_info{{version="{rows[0][0]}"}} 1'
    yield "# HELP nvidia_gpu_ecc_errors_total Memory errors since the driver was loaded; GPUs without ECC have none."
    yield "# TYPE nvidia_gpu_ecc_errors_total counter"
    for _, address, *counts in rows:
        for kind, count in zip(("corrected", "uncorrected"), counts, strict=True):
            if count.isdecimal():
                yield f'nvidia_gpu_ecc_errors_total{{pci="{bus(address)}",kind="{kind}"}} {count}'
    if log is not None:
        yield "# HELP nvidia_gpu_xid_errors_total Errors that the kernel module logged since the boot, by NVIDIA's Xid code."
        yield "# TYPE nvidia_gpu_xid_errors_total counter"
        for (address, code), times in sorted(xids(log.splitlines()).items()):
            yield f'nvidia_gpu_xid_errors_total{{pci="{address}",xid="{code}"}} {times}'


def main(path: Path) -> None:
    """Replace the file at once, so that the collector never reads half of it."""
    listed = output("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    log = output("journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager", "--quiet")
    written = path.with_suffix(".tmp")
    written.write_text("\n".join(lines(listed, log)) + "\n")
    os.replace(written, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
