"""The machine of a run, and how quiet it was."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from lab import run


def description(command: str) -> dict[str, str]:
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    wrk = run("wrk -v", statuses=(1,)).splitlines()[0]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"`{command}`",
        "cores": f"{len(os.sched_getaffinity(0))}, {models[0] if models else platform.machine()}",
        "kernel": platform.release(),
        "peers": f"{run('haproxy -v').splitlines()[0]}; {run('go version').strip()}",
        "load": f"{wrk.split(' Copyright')[0]}; {run('iperf3 --version').split(' (')[0]}",
    }


@dataclass(frozen=True)
class Activity:
    """Times so far, in seconds: of all cores (proc_stat(5)), and of this process with all that it waited for."""

    busy: float
    stolen: float
    passed: float
    own: float
    load: float
    """Load average over one minute (proc_loadavg(5))."""

    @staticmethod
    def now() -> "Activity":
        line = Path("/proc/stat").read_text().splitlines()[0]
        ticks = [int(each) / os.sysconf("SC_CLK_TCK") for each in line.split()[1:9]]
        user, nice, system, idle, io_wait, irq, soft_irq, stolen = ticks
        busy = user + nice + system + irq + soft_irq
        passed = busy + idle + io_wait + stolen
        return Activity(busy, stolen, passed, sum(os.times()[:4]), os.getloadavg()[0])

    def until(self, end: "Activity") -> str:
        """What else the machine did in a run that lasted from here to `end`."""
        passed = end.passed - self.passed
        others = (end.busy - self.busy) - (end.own - self.own)
        return (
            f"the hypervisor took {(end.stolen - self.stolen) / passed:.1%} of the cores' time (steal), "
            f"programs that are not the benchmark's {max(0.0, others) / passed:.1%}; "
            f"load average {self.load:.2f} before, {end.load:.2f} at the end"
        )
