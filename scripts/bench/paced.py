"""Requests at a given rate, on a node that is quiet, or busy with neighbours.

The rate is the same for every server, so that a neighbour, another process that computes on the same cores,
shows in the work that it loses what the requests take from it in all: processor time, caches, switches.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Iterator

from lab import POD, SCRATCH, Lab, running, until
from load import CELLS, SETTLE, Cell, RequestRun
from processes import Family
from servers import PORT, Binaries, Rules, Server, log_lines, request, serving

CONNECTIONS = 64


@dataclass(frozen=True)
class PacedCell:
    """Requests per second, and whether a neighbour computes on each core."""

    rate: int
    busy: bool

    @property
    def key(self) -> str:
        return f"paced-{self.rate}-{'busy' if self.busy else 'quiet'}"

    def __str__(self) -> str:
        return f"{self.rate:,}/s, {'busy' if self.busy else 'quiet'}"


PACED_CELLS = [PacedCell(rate, busy) for busy in (False, True) for rate in (2_000, 10_000)]
ALL_CELLS: list[Cell | PacedCell] = [*CELLS, *PACED_CELLS]


@dataclass(frozen=True)
class PacedRun(RequestRun):
    """One run of the paced client.

    `late_p99` is the client's own: from the time when a request was due until it was sent, in µs.
    `passes_per_second` is the work of all neighbours together, 0 without any.
    """

    late_p99: int
    passes_per_second: float


@dataclass(frozen=True)
class BaselineRun:
    """The work of the neighbours without any server and client."""

    round: int
    cell: str
    passes_per_second: float


def neighbour_count() -> int:
    """One for each core that the benchmark may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Neighbours:
    """Processes that compute, each with the file in which it counts its passes."""

    counters: tuple[Path, ...] = ()

    def counts(self) -> list[int]:
        return [int.from_bytes(file.read_bytes(), sys.byteorder) for file in self.counters]

    def passes(self) -> int:
        return sum(self.counts())


@contextmanager
def neighbours(binaries: Binaries) -> Iterator[Neighbours]:
    """Runs one for each core, but pinned to none."""
    counters = tuple(SCRATCH / f"neighbour-{number}" for number in range(neighbour_count()))
    with ExitStack() as processes:
        for file in counters:
            file.write_bytes(bytes(8))
            command = [str(binaries.neighbour), str(file)]
            processes.enter_context(running(command, SCRATCH / "neighbour.log"))
        computing = Neighbours(counters)
        until("neighbours compute", lambda: all(computing.counts()))
        yield computing


def measure_baseline(
    binaries: Binaries, cell: PacedCell, number: int, seconds: float
) -> BaselineRun:
    with neighbours(binaries) as computing:
        passes, begun = computing.passes(), monotonic()
        sleep(seconds)
        passes, taken = computing.passes() - passes, monotonic() - begun
    return BaselineRun(number, cell.key, passes / taken)


def measure(
    lab: Lab,
    server: Server,
    rules: Rules,
    binaries: Binaries,
    cell: PacedCell,
    number: int,
    seconds: float,
) -> PacedRun:
    """Measures a new process; the number of the round selects the times of the requests."""
    requests = round(cell.rate * seconds)
    beside = neighbours(binaries) if cell.busy else nullcontext(Neighbours())
    with serving(lab, server, rules) as family, beside as computing, lab.client:
        with waiting_client(binaries, cell, requests, number) as client:
            cpu, passes, begun = family.cpu_seconds(), computing.passes(), monotonic()
            report = json.loads(client.communicate("\n")[0] or "{}")
            taken = monotonic() - begun
            cpu, passes = family.cpu_seconds() - cpu, computing.passes() - passes
        sleep(SETTLE)  # HAProxy logs after its response
    if client.returncode:
        raise RuntimeError(f"{server.name}, {cell}: the client's status is {client.returncode}")
    expected = CONNECTIONS + requests if server.logs else 0
    return PacedRun(
        round=number,
        server=server.key,
        cell=cell.key,
        requests=requests,
        requests_per_second=requests / report["microseconds"] * 1e6,
        p50=report["p50"],
        p99=report["p99"],
        p99_9=report["p99_9"],
        late_p99=report["late_p99"],
        cpu_per_request=cpu / requests * 1e6,
        passes_per_second=passes / taken,
        log_lines_missing=max(0, expected - log_lines()),
    )


@contextmanager
def waiting_client(
    binaries: Binaries, cell: PacedCell, requests: int, seed: int
) -> Iterator[subprocess.Popen[str]]:
    """Runs the client until it is connected, and has had a response on each connection."""
    numbers = [PORT, CONNECTIONS, cell.rate, requests, seed]
    command = [str(binaries.paced), POD, *map(str, numbers), request().decode()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as client:
        assert client.stdout
        if client.stdout.readline() != "ready\n":
            raise RuntimeError(f"{command[0]}: no connection")
        yield client
