"""Footprint of a server: memory, start time, and size in an image."""

import re
import socket
import struct
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lab import Lab, run, running
from servers import (
    LOG,
    Rules,
    Server,
    ask,
    behind_rules,
    connect,
    request,
    serving,
    until_answered,
)

IDLE = [0, 1000, 5000]


@dataclass(frozen=True)
class MemoryRun:
    """Memory of a server with idle connections, each after one response."""

    round: int
    server: str
    idle: int
    resident_bytes: int


@dataclass(frozen=True)
class StartRun:
    """Time from exec to the first response to a captured request."""

    round: int
    server: str
    milliseconds: float


def measure_memory(
    lab: Lab, server: Server, rules: Rules, number: int, settle: float
) -> list[MemoryRun]:
    """Measures one process with an increasing number of idle connections."""
    runs = []
    with serving(lab, server, rules) as family, ExitStack() as held:
        for before, idle in zip([0, *IDLE], IDLE):
            with lab.client:
                for _ in range(idle - before):
                    held.enter_context(answered_once())
            time.sleep(settle)
            runs.append(MemoryRun(number, server.key, idle, family.resident_bytes()))
    return runs


def answered_once() -> socket.socket:
    """A connection closed by a RST: without TIME_WAIT its port is free at once for the next server."""
    connection = connect()
    reset = struct.pack("ii", 1, 0)  # struct linger, socket(7)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    ask(connection, request())
    return connection


def measure_start(lab: Lab, server: Server, rules: Rules, number: int) -> StartRun:
    """Starts a server, while a client sends requests in a tight loop."""
    with behind_rules(server, rules):
        begun = time.monotonic()
        with running(server.command, LOG) as process:
            until_answered(lab, process)
            taken = time.monotonic() - begun
    return StartRun(number, server.key, taken * 1e3)


def image_size(server: Server) -> int:
    """Size of the files that an image needs, in bytes."""
    program = Path(server.command[0])
    return sum(file.resolve().stat().st_size for file in [program, *libraries(program)])


def libraries(program: Path) -> list[Path]:
    """Shared libraries of a program, and the dynamic loader; none, and status 1, if it is static."""
    listed = run(f"ldd {program}", statuses=(0, 1))
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]
