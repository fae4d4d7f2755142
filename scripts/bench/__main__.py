"""The driver of scripts/bench.sh, which builds the programs and starts this in namespaces."""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import bystanders
import footprint
import load
import machine
import paced
from bystanders import RuleSet
from lab import SCRATCH, Lab, run
from plan import FULL, PARTS, QUICK, Plan, Selection
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
    select,
    serving,
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Bench:
    """Parameters of all measurements."""

    lab: Lab
    plan: Plan
    selection: Selection
    binaries: Binaries
    rules: Rules
    answer: int
    servers: list[Server]
    rule_sets: list[RuleSet]

    @staticmethod
    def prepare(
        plan: Plan, selection: Selection, binaries: Binaries, keys: list[str] | None
    ) -> "Bench":
        """Without keys it has all servers."""
        lab = Lab()
        rules, answer = discover(lab, ours(binaries.ours))
        servers = all_servers(binaries, answer)
        if keys is not None:
            servers = select(servers, keys)
        rule_sets = bystanders.all_rule_sets(lab, binaries, rules)
        return Bench(lab, plan, selection, binaries, rules, answer, servers, rule_sets)

    def measure(self, results: Results) -> None:
        self.compare_answers(results)
        if self.selection.load:
            self.measure_load(results)
        if self.selection.paced:
            self.measure_paced(results)
        if self.selection.footprint:
            self.measure_footprint(results)
        if self.selection.bystanders:
            self.measure_bystanders(results)

    def compare_answers(self, results: Results) -> None:
        for server in self.servers:
            with serving(self.lab, server, self.rules), self.lab.client, connect() as connection:
                length = len(ask(connection, request()))
            results.answer_bytes[server.key] = length
            progress(f"{server.name} answers with {length} bytes")

    def turns(self, number: int) -> list[Server]:
        """The servers in the order of a round: in each, another one is first."""
        return rotated(self.servers, number - 1)

    def measure_load(self, results: Results) -> None:
        plan = self.plan
        for number in range(1, plan.load_rounds + 1):
            for cell in self.selection.load:
                progress(f"load, round {number} of {plan.load_rounds}: {cell}")
                for server in self.turns(number):
                    measured = load.measure(
                        self.lab, server, self.rules, cell, number, plan.load_seconds, plan.warm_up
                    )
                    results.loads.append(measured)
                    if measured.failed:
                        progress(f"not clean: {measured}")

    def measure_paced(self, results: Results) -> None:
        plan, binaries = self.plan, self.binaries
        for number in range(1, plan.paced_rounds + 1):
            for cell in self.selection.paced:
                progress(f"paced, round {number} of {plan.paced_rounds}: {cell}")
                if cell.busy:
                    results.baselines.append(
                        paced.measure_baseline(binaries, cell, number, plan.paced_seconds)
                    )
                for server in self.turns(number):
                    results.paced.append(
                        paced.measure(
                            self.lab, server, self.rules, binaries, cell, number, plan.paced_seconds
                        )
                    )

    def measure_footprint(self, results: Results) -> None:
        plan = self.plan
        for number in range(1, plan.memory_rounds + 1):
            progress(f"memory, round {number} of {plan.memory_rounds}")
            for server in self.turns(number):
                results.memory += footprint.measure_memory(
                    self.lab, server, self.rules, number, plan.settle
                )
        for number in range(1, plan.starts + 1):
            progress(f"start, round {number} of {plan.starts}")
            for server in self.turns(number):
                results.starts.append(footprint.measure_start(self.lab, server, self.rules, number))
        for server in self.servers:
            results.image_bytes[server.key] = footprint.image_size(server)

    def measure_bystanders(self, results: Results) -> None:
        plan = self.plan
        with bystanders.pod_serves(self.lab, self.binaries, self.answer):
            for number in range(1, plan.bystander_rounds + 1):
                progress(f"bystanders, round {number} of {plan.bystander_rounds}")
                for rule_set in rotated(self.rule_sets, number - 1):
                    results.bystanders.append(
                        bystanders.measure(self.lab, rule_set, number, plan.bystander_seconds)
                    )


def rotated(items: list[Item], by: int) -> list[Item]:
    first = by % len(items)
    return items[first:] + items[:first]


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def draw(results: Results, servers: list[Server]) -> bytes:
    """The chart, as SVG."""
    data = SCRATCH / "chart.dat"
    data.write_text(chart_data(results, servers))
    (SCRATCH / "names.gp").write_text(f'data = "{data}"\nchart = "{SCRATCH}/chart.svg"\n')
    run(f"gnuplot {SCRATCH}/names.gp {BENCH}/chart.gp")
    return (SCRATCH / "chart.svg").read_bytes()


def write(bench: Bench, results: Results, output: Path, *, is_whole: bool) -> str:
    """Writes all files; returns the report. Only a whole run has all numbers of the chart."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    if is_whole:
        (output / "chart.svg").write_bytes(draw(results, bench.servers))
    text = report(results, bench.servers, bench.rule_sets)
    (output / "report.md").write_text(text)
    return text


def words(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=words)
    parser.add_argument("--servers", type=words)
    parser.add_argument("--rounds", type=int)
    for name in ("--output", "--ours", "--go", "--floor", "--haproxy", "--paced", "--neighbour"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--command", required=True)
    options = parser.parse_args()
    binaries = Binaries(
        options.ours, options.go, options.floor, options.haproxy, options.paced, options.neighbour
    )
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = plan.with_rounds(options.rounds)
    try:
        selection = Selection.parse(options.only or [*PARTS])
        bench = Bench.prepare(plan, selection, binaries, options.servers)
    except ValueError as error:
        parser.error(str(error))
    results = Results(machine.description(options.command), bench.answer)
    before = machine.Activity.now()
    bench.measure(results)
    results.machine["quietness"] = before.until(machine.Activity.now())
    is_whole = options.only is None and options.servers is None
    print(write(bench, results, options.output, is_whole=is_whole))


main()
