"""The report: Markdown tables, as docs/performance.md has them, and the numbers of the chart."""

from statistics import median
from typing import Callable, TypeVar

from bars import all_bars
from bystanders import RuleSet
from footprint import IDLE
from load import CELLS, Cell
from paced import ALL_CELLS, CONNECTIONS, PACED_CELLS, PacedCell
from results import Results, ratio, values
from servers import Server

NOTES = f"""\
All ratios are of medians; in parentheses are the lowest and the highest ratio of a single round. Within
a round every server had its turn, in each round another one first, each time as a fresh process, and
alone on the node with the rules: those of tproxy-pod, for all. Client, node and Pod are network
namespaces of one machine, which shares its cores between the client and the server.

- The server's CPU is user and system time of all its processes while the client ran, from their CPU
  clocks. What the kernel does for a packet counts for the process that runs at that moment: part of
  receiving is the client's.
- Under load: the client is wrk with one thread. Latency is wrk's, from a request to its answer;
  connecting is not in it. wrk corrects it for coordinated omission: a late answer counts also for the
  requests that waited behind it.
- Paced: {CONNECTIONS} kept connections, and requests at the times of a Poisson process, the same times for
  every server. Latency counts from the time at which a request was due, so the client's own delay is
  in it; "client late" is how much that was.
- Busy: beside a process for each core that computes without a system call, at normal priority, and not
  pinned to a core. These are the neighbours, too: what they lose is relative to their work in the same
  round without server and client. The client's own time is part of it, for every server.
- Each server but the floor writes one line for each request to a file in a tmpfs. HAProxy's lines and
  echo have the parts of tproxy-pod's, but no Date field, and no time of day in the echo. Go prints the
  whole request into both, as the original did. The floor's answer is fixed, and it logs nothing.
- Bystanders: iperf3 for a second with TCP cubic, and wrk with 64 kept connections to the floor in the
  Pod; the client on one core, the Pod's server on another. What "nothing, again" differs from
  "nothing" is noise.
- Memory is VmRSS; the kernel's memory for sockets and threads is not in it. MB are 10⁶ bytes.
- The first answer comes to a client that asks in a tight loop. The peers find their rules installed;
  tproxy-pod installs its own in that time.
- An image needs tproxy-pod's file, HAProxy's with its shared libraries, Go's, or the floor's.
"""

AnyCell = TypeVar("AnyCell", Cell, PacedCell, Cell | PacedCell)
Column = Callable[[str], list[float]]
"""The numbers of a server, by its key."""

UNLIKE = 0.25
"""Largest difference in length from tproxy-pod's response, as a fraction of it."""


def report(results: Results, servers: list[Server], rule_sets: list[RuleSet]) -> str:
    sections = [
        "# Benchmark of tproxy-pod\n",
        *[f"- {key}: {value}" for key, value in results.machine.items()],
        "",
        *failures(results),
        *bars(results),
        *load(results, servers),
        *paced(results, servers),
        *neighbours(results, servers),
        *ratios(results, servers),
        *footprint(results, servers),
        *bystanders(results, rule_sets),
        "## How it was measured\n",
        NOTES,
    ]
    return "\n".join(sections)


def table(title: str, columns: list[str], rows: list[list[str]]) -> list[str]:
    """A table: the first column is text, the others are numbers; nothing if it has no rows."""
    if not rows:
        return []
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [columns, rule, *rows]]
    return [f"## {title}\n", *lines, ""]


def failures(results: Results) -> list[str]:
    """Errors that invalidate the numbers."""
    lines = [
        f"- {run.server}, {run.cell}, round {run.round}: {run.errors}, "
        f"{run.log_lines_missing} lines are missing in the log"
        for run in results.loads
        if run.failed
    ]
    lines += [
        f"- {run.server}, {run.cell}, round {run.round}: {run.log_lines_missing} lines are missing in the log"
        for run in results.paced
        if run.log_lines_missing
    ]
    lines += [
        f"- beside {run.rule_set}, round {run.round}: {run.errors}"
        for run in results.bystanders
        if any(run.errors.values())
    ]
    lines += [
        f"- {server} answers with {length} bytes, which is not like tproxy-pod's {results.answer}"
        for server, length in results.answer_bytes.items()
        if abs(length / results.answer - 1) > UNLIKE
    ]
    return (
        ["## Errors: these runs are not clean\n", *lines, ""]
        if lines
        else ["No run had an error.\n"]
    )


def bars(results: Results) -> list[str]:
    rows = [bar.row() for bar in all_bars(results)]
    head = ["## Bars\n", "| what | bar | measured | met |", "|---|---:|---:|---|"]
    return [*head, *rows, ""] if rows else []


def measured(results: Results, cells: list[AnyCell]) -> list[AnyCell]:
    """Those cells that this run has measured."""
    keys = {run.cell for run in results.loads} | {run.cell for run in results.paced}
    return [cell for cell in cells if cell.key in keys]


def row(
    text: str, servers: list[Server], columns: list[Column], form: str, unit: str = ""
) -> list[str]:
    """A row with the medians of one or several numbers for each server."""

    def numbers(server: Server) -> str:
        return ", ".join(format(median(column(server.key)), form) for column in columns) + unit

    return [text, *map(numbers, servers)]


def latency(results: Results, cell: Cell | PacedCell) -> list[Column]:
    """p50, p99 and p99.9, in ms."""

    def column(name: str) -> Column:
        return lambda server: [µs / 1e3 for µs in results.requests(name, server, cell.key)]

    return [column(name) for name in ("p50", "p99", "p99_9")]


def number(results: Results, cell: Cell | PacedCell, name: str) -> list[Column]:
    return [lambda server: results.requests(name, server, cell.key)]


def cost(results: Results, servers: list[Server], cell: Cell | PacedCell) -> list[str]:
    cpu = number(results, cell, "cpu_per_request")
    return row(f"{cell}: CPU per request", servers, cpu, ".1f", " µs")


def percentiles(results: Results, servers: list[Server], cell: Cell | PacedCell) -> list[str]:
    return row("p50, p99, p99.9", servers, latency(results, cell), ".2f", " ms")


def load(results: Results, servers: list[Server]) -> list[str]:
    rows = []
    for cell in measured(results, CELLS):
        rate = number(results, cell, "requests_per_second")
        rows.append(cost(results, servers, cell))
        rows.append(row("requests/s", servers, rate, ",.0f"))
        rows.append(percentiles(results, servers, cell))
    return table("Under load", ["", *names(servers)], rows)


def paced(results: Results, servers: list[Server]) -> list[str]:
    rows = []
    for cell in measured(results, PACED_CELLS):
        late = number(results, cell, "late_p99")
        rows.append(cost(results, servers, cell))
        rows.append(percentiles(results, servers, cell))
        rows.append(row("client late, p99", servers, late, ",.0f", " µs"))
    return table("Paced", ["", *names(servers)], rows)


def neighbours(results: Results, servers: list[Server]) -> list[str]:
    """The work that the neighbours lost; that without a server says how much of it is noise."""
    rows = []
    for cell in measured(results, [cell for cell in PACED_CELLS if cell.busy]):
        losses = [results.work_lost(server.key, cell.key) for server in servers]
        lost = [f"{median(loss):.1%} ({min(loss):.1%} to {max(loss):.1%})" for loss in losses]
        rows.append([f"{cell.rate:,} requests/s: work lost", *lost])
        rows.append(row("CPU lost per request", servers, cpu_lost(results, cell), ".1f", " µs"))
    lines = table("Neighbours", ["", *names(servers)], rows)
    return [*lines, *baseline(results)] if lines else []


def cpu_lost(results: Results, cell: PacedCell) -> list[Column]:
    return [lambda server: results.cpu_lost(server, cell.key)]


def baseline(results: Results) -> list[str]:
    work = [run.passes_per_second for run in results.baselines]
    lowest, highest = min(work) / median(work), max(work) / median(work)
    return [
        f"Without server and client their work was {lowest:.1%} to {highest:.1%} of its median "
        f"in {len(work)} runs.\n"
    ]


def names(servers: list[Server]) -> list[str]:
    return [server.name for server in servers]


def ratios(results: Results, servers: list[Server]) -> list[str]:
    """The first of the servers in relation to each other one, in each cell."""
    mine, *others = servers
    rows = []
    for cell in measured(results, ALL_CELLS):
        for other in others:
            compared = [
                ratio(*(results.requests(name, each.key, cell.key) for each in (mine, other)))
                for name in ("requests_per_second", "p99", "cpu_per_request")
            ]
            rows.append([f"{cell.key}: {mine.name} / {other.name}", *map(str, compared)])
    return table("Ratios", ["", "requests/s", "p99", "CPU per request"], rows)


def footprint(results: Results, servers: list[Server]) -> list[str]:
    if not results.memory:
        return []
    rows = [
        row(f"memory with {idle:,} idle connections", servers, memory(results, idle), ".1f", " MB")
        for idle in IDLE
    ]
    start: Column = lambda server: values(results.starts, "milliseconds", server=server)
    image: Column = lambda server: [results.image_bytes[server] / 1e6]
    answer: Column = lambda server: [results.answer_bytes[server]]
    rows += [
        row("from exec to the first answer", servers, [start], ".1f", " ms"),
        row("in the image", servers, [image], ".1f", " MB"),
        row("its answer", servers, [answer], ".0f", " bytes"),
    ]
    return table("Memory, start, image", ["", *names(servers)], rows)


def memory(results: Results, idle: int) -> list[Column]:
    def megabytes(server: str) -> list[float]:
        runs = values(results.memory, "resident_bytes", server=server, idle=idle)
        return [resident / 1e6 for resident in runs]

    return [megabytes]


def bystanders(results: Results, rule_sets: list[RuleSet]) -> list[str]:
    if not results.bystanders:
        return []
    columns = [
        "on the node",
        "requests/s",
        "× nothing",
        "× 1 CIDR",
        "Gbit/s",
        "× nothing",
        "× 1 CIDR",
    ]
    rows = []
    for rule_set in rule_sets:
        cells = []
        for name, form in (("requests_per_second", ",.0f"), ("gigabits_per_second", ".1f")):
            mine, none, one = (
                values(results.bystanders, name, rule_set=key)
                for key in (rule_set.key, "none", "ours")
            )
            cells += [format(median(mine), form)]
            cells += [f"{ratio(mine, other)}" for other in (none, one)]
        rows.append([rule_set.name, *cells])
    return table("Bystanders: traffic that is not captured", columns, rows)


def chart_data(results: Results, servers: list[Server]) -> str:
    """A line for each server: name, and numbers of the panels of chart.gp."""
    lines = []
    for server in servers:
        numbers = [median(column(server.key)) for column in panels(results)]
        lines.append(" ".join([f'"{server.name}"', *[f"{each:.4g}" for each in numbers]]))
    return "\n".join(lines) + "\n"


def panels(results: Results) -> list[Column]:
    def of(name: str, cell: str, unit: float = 1) -> Column:
        return lambda server: [each / unit for each in results.requests(name, server, cell)]

    return [
        of("cpu_per_request", "keep-alive-1"),
        of("cpu_per_request", "keep-alive-64"),
        of("cpu_per_request", "close-64"),
        of("p99", "keep-alive-64", 1e3),
        of("p99", "paced-10000-busy", 1e3),
        lambda server: [part * 100 for part in results.work_lost(server, "paced-10000-busy")],
        of("requests_per_second", "keep-alive-64", 1e3),
        *memory(results, 1000),
    ]
