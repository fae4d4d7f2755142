"""Requests of wrk: rate, latency, and processor time of the server."""

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import POD, Lab
from processes import Family
from servers import AGENT, PORT, TARGET, Rules, Server, log_lines, serving

SCRIPT = Path(__file__).parent / "percentiles.lua"
SETTLE = 0.1
"""Time for the server to close the connections of the warm-up, or to log the last response, in seconds."""


@dataclass(frozen=True)
class Cell:
    """Behaviour of the clients."""

    mode: str
    connections: int

    @property
    def key(self) -> str:
        return f"{self.mode}-{self.connections}"

    def __str__(self) -> str:
        return f"{self.mode}, {self.connections} connection{'s' * (self.connections > 1)}"


CELLS = [
    *[Cell("keep-alive", count) for count in (1, 8, 64, 512)],
    *[Cell("close", count) for count in (1, 64, 512)],
]


@dataclass(frozen=True)
class RequestRun:
    """Requests of one run against one server; times in µs."""

    round: int
    server: str
    cell: str
    requests: int
    requests_per_second: float
    p50: int
    p99: int
    p99_9: int
    cpu_per_request: float
    log_lines_missing: int


@dataclass(frozen=True)
class LoadRun(RequestRun):
    """One run of wrk."""

    errors: dict[str, int]

    @property
    def failed(self) -> bool:
        return any(self.errors.values()) or self.log_lines_missing > 0


def wrk(url: str, cell: Cell, seconds: float) -> dict[str, Any]:
    """Runs wrk in the namespace of this thread; returns the output of percentiles.lua."""
    command = ["wrk", "-t1", f"-c{cell.connections}", "-d1h", "-s", str(SCRIPT)]
    command += ["-H", f"User-Agent: {AGENT}"]
    if cell.mode == "close":
        command += ["-H", "Connection: close"]
    process = subprocess.Popen(
        [*command, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(seconds)
    # wrk stops in order, and reports the time that it ran.
    process.send_signal(signal.SIGINT)
    report = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"wrk: status {process.returncode}\n{report}")
    return json.loads(report.splitlines()[-1])


def measure(
    lab: Lab, server: Server, rules: Rules, cell: Cell, number: int, seconds: float, warm_up: float
) -> LoadRun:
    """Measures a new process."""
    url = f"http://{POD}:{PORT}{TARGET}"
    with serving(lab, server, rules) as family, lab.client:
        warm = wrk(url, cell, warm_up)
        time.sleep(SETTLE)
        cpu = family.cpu_seconds()
        report = wrk(url, cell, seconds)
        cpu = family.cpu_seconds() - cpu
    requests = report["requests"]
    expected = warm["requests"] + requests if server.logs else 0
    return LoadRun(
        round=number,
        server=server.key,
        cell=cell.key,
        requests=requests,
        requests_per_second=requests / report["microseconds"] * 1e6,
        p50=report["p50"],
        p99=report["p99"],
        p99_9=report["p99_9"],
        cpu_per_request=cpu / requests * 1e6,
        errors=report["errors"],
        log_lines_missing=max(0, expected - log_lines()),
    )
