"""Counters of processes, from their CPU clocks and proc(5)."""

import ctypes
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import libc


@dataclass(frozen=True)
class Family:
    """A snapshot of a process and its descendants."""

    members: tuple[int, ...]

    @staticmethod
    def of(process: int) -> "Family":
        return Family(tuple(descent(process)))

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far."""
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
    """In nanoseconds, where /proc/PID/stat counts clock ticks of 10 ms (clock_getcpuclockid(3))."""
    clock = ctypes.c_int()
    failed = libc.clock_getcpuclockid(process, ctypes.byref(clock))
    if failed:
        raise OSError(failed, f"the CPU clock of process {process}")
    return time.clock_gettime(clock.value)


def resident_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {process} has no VmRSS")
