"""Counters of processes, from proc(5)."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Family:
    """A snapshot of a process and its descendants."""

    members: tuple[int, ...]

    @staticmethod
    def of(process: int) -> "Family":
        return Family(tuple(descent(process)))

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far, in steps of a clock tick."""
        return sum(cpu_seconds(member) for member in self.members)

    def resident_bytes(self) -> int:
        """VmRSS; pages shared by two of the processes count twice."""
        return sum(resident_bytes(member) for member in self.members)


def descent(process: int) -> list[int]:
    """A process and its descendants; a thread may end meanwhile."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in (task / "children").read_text().split():
                found += descent(int(child))
    return found


def cpu_seconds(process: int) -> float:
    # The program name, in parentheses, may contain blanks; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {process} has no VmRSS")
