"""The report: Markdown tables, and the numbers of the chart."""

from statistics import median

from bars import all_bars
from bystanders import Neighbour
from footprint import IDLE
from load import CELLS, Cell
from results import Results, ratio, values
from servers import Server

NOTES = """\
All ratios are of medians; in parentheses are the lowest and the highest ratio of a single round. Within
a round every server had its turn, each time as a fresh process, and alone on the node with the
rules: those of tproxy-pod, for all. Client, node and Pod are network namespaces of one machine,
which shares its cores between wrk and the server.

- The server's CPU is user and system time of all its processes while wrk ran, from /proc. What the
  kernel does for a packet counts for the process that runs at that moment: part of receiving is wrk's.
- Latency is wrk's, from a request to its answer; connecting is not in it. wrk corrects it for
  coordinated omission: a late answer counts also for the requests that waited behind it.
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

UNLIKE = 0.25
"""Largest difference in length from tproxy-pod's response, as a fraction of it."""


def report(results: Results, servers: list[Server], neighbours: list[Neighbour]) -> str:
    sections = [
        "# Benchmark of tproxy-pod\n",
        *[f"- {key}: {value}" for key, value in results.machine.items()],
        "",
        *failures(results),
        *bars(results),
        *load(results, servers),
        *ratios(results),
        *footprint(results, servers),
        *bystanders(results, neighbours),
        "## How it was measured\n",
        NOTES,
    ]
    return "\n".join(sections)


def table(title: str, columns: list[str], rows: list[list[str]]) -> list[str]:
    """A table: the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [columns, rule, *rows]]
    return [f"## {title}\n", *lines, ""]


def failures(results: Results) -> list[str]:
    """Errors that invalidate the numbers."""
    lines = [
        f"- {run.server}, {run.mode}, {run.connections} connections, round {run.round}: {run.errors}, "
        f"{run.log_lines_missing} lines are missing in the log"
        for run in results.loads
        if run.failed
    ]
    lines += [
        f"- beside {run.neighbour}, round {run.round}: {run.errors}"
        for run in results.bystanders
        if any(run.errors.values())
    ]
    lines += [
        f"- {server} answers with {length} bytes, which is not like tproxy-pod's answer"
        for server, length in results.answer_bytes.items()
        if abs(length / results.answer_bytes["ours"] - 1) > UNLIKE
    ]
    return ["## Errors: these runs are not clean\n", *lines, ""] if lines else ["No run had an error.\n"]


def bars(results: Results) -> list[str]:
    head = ["## Bars\n", "| what | bar | measured | met |", "|---|---:|---:|---|"]
    return [*head, *[bar.row() for bar in all_bars(results)], ""]


def load(results: Results, servers: list[Server]) -> list[str]:
    columns = ["", "connections", "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs per request"]
    lines = []
    for mode in dict.fromkeys(cell.mode for cell in CELLS):
        cells = [cell for cell in CELLS if cell.mode == mode]
        rows = [load_row(results, server, cell) for cell in cells for server in servers]
        lines += table(f"Under load: {mode}", columns, rows)
    return lines


def load_row(results: Results, server: Server, cell: Cell) -> list[str]:
    def middle(name: str) -> float:
        return median(load_values(results, name, server.key, cell))

    return [
        server.name,
        f"{cell.connections}",
        *[f"{middle(name):,.0f}" for name in ("requests_per_second", "p50", "p99", "p99_9")],
        f"{middle('cpu_per_request'):.1f}",
    ]


def load_values(results: Results, name: str, server: str, cell: Cell) -> list[float]:
    where = {"server": server, "mode": cell.mode, "connections": cell.connections}
    return values(results.loads, name, **where)


def ratios(results: Results) -> list[str]:
    rows = []
    for cell in CELLS:
        for peer, label in (("haproxy", "HAProxy"), ("go", "Go")):
            compared = [
                ratio(load_values(results, name, "ours", cell), load_values(results, name, peer, cell))
                for name in ("requests_per_second", "p99", "cpu_per_request")
            ]
            rows.append([f"{cell}: tproxy-pod / {label}", *map(str, compared)])
    return table("Ratios", ["", "requests/s", "p99", "CPU per request"], rows)


def footprint(results: Results, servers: list[Server]) -> list[str]:
    columns = ["", *[f"RSS, {idle:,} idle connections, MB" for idle in IDLE]]
    columns += ["exec to first answer, ms", "in the image, MB", "its answer, bytes"]
    rows = []
    for server in servers:
        memory = [
            median(values(results.memory, "resident_bytes", server=server.key, idle=idle)) / 1e6
            for idle in IDLE
        ]
        start = median(values(results.starts, "milliseconds", server=server.key))
        numbers = [*memory, start, results.image_bytes[server.key] / 1e6]
        answer = f"{results.answer_bytes[server.key]}"
        rows.append([server.name, *[f"{number:.1f}" for number in numbers], answer])
    return table("Memory, start, image", columns, rows)


def bystanders(results: Results, neighbours: list[Neighbour]) -> list[str]:
    columns = ["on the node", "requests/s", "× nothing", "× 1 CIDR", "Gbit/s", "× nothing", "× 1 CIDR"]
    rows = []
    for neighbour in neighbours:
        cells = []
        for name, form in (("requests_per_second", ",.0f"), ("gigabits_per_second", ".1f")):
            mine, none, one = (
                values(results.bystanders, name, neighbour=key)
                for key in (neighbour.key, "none", "ours")
            )
            cells += [format(median(mine), form)]
            cells += [f"{ratio(mine, other)}" for other in (none, one)]
        rows.append([neighbour.name, *cells])
    return table("Bystanders: traffic that is not captured", columns, rows)


def chart_data(results: Results, servers: list[Server]) -> str:
    """A line for each server: name, and numbers of the panels of chart.gp."""
    keep_alive, close = Cell("keep-alive", 64), Cell("close", 64)
    lines = []
    for server in servers:
        numbers = [
            median(load_values(results, "cpu_per_request", server.key, keep_alive)),
            median(load_values(results, "cpu_per_request", server.key, close)),
            median(load_values(results, "p99", server.key, keep_alive)) / 1e3,
            median(values(results.memory, "resident_bytes", server=server.key, idle=1000)) / 1e6,
        ]
        lines.append(" ".join([f'"{server.name}"', *[f"{number:.4g}" for number in numbers]]))
    return "\n".join(lines) + "\n"
