"""The driver of scripts/bench.sh, which builds the programs and starts this in namespaces."""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import bystanders
import footprint
import load
from bystanders import Neighbour
from lab import SCRATCH, Lab, run
from report import chart_data, report
from results import Results
from servers import (
    BENCH,
    Binaries,
    Rules,
    Server,
    all_servers,
    ask,
    connect,
    discover,
    ours,
    request,
    serving,
)


@dataclass(frozen=True)
class Plan:
    """Amount of measurements; times in seconds."""

    load_rounds: int
    load_seconds: float
    warm_up: float
    memory_rounds: int
    settle: float
    starts: int
    bystander_rounds: int
    bystander_seconds: float


FULL = Plan(
    load_rounds=5,
    load_seconds=3.0,
    warm_up=0.5,
    memory_rounds=3,
    settle=2.0,
    starts=10,
    bystander_rounds=18,
    bystander_seconds=1.0,
)
QUICK = Plan(
    load_rounds=1,
    load_seconds=0.5,
    warm_up=0.1,
    memory_rounds=1,
    settle=1.5,
    starts=3,
    bystander_rounds=1,
    bystander_seconds=0.5,
)


@dataclass(frozen=True)
class Bench:
    """Parameters of all measurements."""

    lab: Lab
    plan: Plan
    binaries: Binaries
    rules: Rules
    answer: int
    servers: list[Server]
    neighbours: list[Neighbour]

    @staticmethod
    def prepare(plan: Plan, binaries: Binaries) -> "Bench":
        lab = Lab()
        rules, answer = discover(lab, ours(binaries.ours))
        servers = all_servers(binaries, answer)
        neighbours = bystanders.all_neighbours(lab, binaries, rules)
        return Bench(lab, plan, binaries, rules, answer, servers, neighbours)

    def measure(self, results: Results) -> None:
        self.compare_answers(results)
        self.measure_load(results)
        self.measure_footprint(results)
        self.measure_bystanders(results)

    def compare_answers(self, results: Results) -> None:
        for server in self.servers:
            with serving(self.lab, server, self.rules), self.lab.client, connect() as connection:
                length = len(ask(connection, request()))
            results.answer_bytes[server.key] = length
            progress(f"{server.name} answers with {length} bytes")

    def measure_load(self, results: Results) -> None:
        plan = self.plan
        for number in range(1, plan.load_rounds + 1):
            for cell in load.CELLS:
                progress(f"load, round {number} of {plan.load_rounds}: {cell}")
                for server in self.servers:
                    measured = load.measure(
                        self.lab, server, self.rules, cell, number, plan.load_seconds, plan.warm_up
                    )
                    results.loads.append(measured)
                    if measured.failed:
                        progress(f"not clean: {measured}")

    def measure_footprint(self, results: Results) -> None:
        plan, common = self.plan, (self.lab, self.rules)
        for number in range(1, plan.memory_rounds + 1):
            progress(f"memory, round {number} of {plan.memory_rounds}")
            for server in self.servers:
                results.memory += footprint.measure_memory(
                    self.lab, server, self.rules, number, plan.settle
                )
        for number in range(1, plan.starts + 1):
            progress(f"start, round {number} of {plan.starts}")
            for server in self.servers:
                results.starts.append(footprint.measure_start(self.lab, server, self.rules, number))
        results.image_bytes = footprint.image_sizes(self.binaries)

    def measure_bystanders(self, results: Results) -> None:
        plan, count = self.plan, len(self.neighbours)
        with bystanders.pod_serves(self.lab, self.binaries, self.answer):
            for number in range(1, plan.bystander_rounds + 1):
                progress(f"bystanders, round {number} of {plan.bystander_rounds}")
                first = (number - 1) % count
                for neighbour in self.neighbours[first:] + self.neighbours[:first]:
                    results.bystanders.append(
                        bystanders.measure(self.lab, neighbour, number, plan.bystander_seconds)
                    )


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def stolen() -> tuple[int, int]:
    """Steal time and total time of all cores so far, in clock ticks (proc_stat(5))."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def machine(command: str) -> dict[str, str]:
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


def write(bench: Bench, results: Results, output: Path) -> str:
    """Writes all files; returns the report."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    data = SCRATCH / "chart.dat"
    data.write_text(chart_data(results, bench.servers))
    (SCRATCH / "names.gp").write_text(f'data = "{data}"\nchart = "{SCRATCH}/chart.svg"\n')
    run(f"gnuplot {SCRATCH}/names.gp {BENCH}/chart.gp")
    (output / "chart.svg").write_bytes((SCRATCH / "chart.svg").read_bytes())
    text = report(results, bench.servers, bench.neighbours)
    (output / "report.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    for name in ("--output", "--ours", "--go", "--floor", "--haproxy"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--command", required=True)
    options = parser.parse_args()
    binaries = Binaries(options.ours, options.go, options.floor, options.haproxy)
    results = Results(machine(options.command))
    bench = Bench.prepare(QUICK if options.quick else FULL, binaries)
    before = stolen()
    bench.measure(results)
    lost, passed = (now - then for now, then in zip(stolen(), before))
    results.machine["stolen"] = f"{lost / passed:.1%} of the cores' time, by the hypervisor"
    print(write(bench, results, options.output))


main()
