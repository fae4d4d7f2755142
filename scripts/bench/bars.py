"""Performance targets of tproxy-pod, and whether this run meets them."""

from dataclasses import dataclass
from statistics import median

from results import Results, ratio, values


@dataclass(frozen=True)
class Bar:
    """A target: the highest or lowest value of a measured number."""

    text: str
    measured: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def row(self) -> str:
        sign = "≤" if self.at_most else "≥"
        met = "yes" if self.met else "**no**"
        return f"| {self.text} | {sign} {self.limit:g} | {self.measured:.3g} | {met} |"


def all_bars(results: Results) -> list[Bar]:
    return [
        *beside_peers(results),
        *growth(results),
        *footprint(results),
        *bystanders(results),
    ]


def beside_peers(results: Results) -> list[Bar]:
    """Ratios to a peer: quantity, behaviour of the clients, peer, limit."""

    def bar(name: str, what: str, mode: str, connections: int, peer: str, limit: float) -> Bar:
        where = {"mode": mode, "connections": connections}
        mine = values(results.loads, name, server="ours", **where)
        theirs = values(results.loads, name, server=peer, **where)
        label = {"haproxy": "HAProxy", "go": "Go"}[peer]
        text = f"{what}, {mode}, {connections} connections: × {label}"
        return Bar(text, ratio(mine, theirs).value, limit, name != "requests_per_second")

    cpu = ("cpu_per_request", "CPU per request")
    rate = ("requests_per_second", "requests/s")
    p99 = ("p99", "p99")
    return [
        bar(*cpu, "keep-alive", 64, "haproxy", 0.95),
        bar(*cpu, "keep-alive", 64, "go", 0.55),
        bar(*cpu, "close", 64, "haproxy", 0.80),
        bar(*cpu, "close", 64, "go", 0.55),
        bar(*rate, "keep-alive", 64, "haproxy", 0.95),
        bar(*rate, "keep-alive", 64, "go", 1.4),
        bar(*rate, "close", 64, "haproxy", 1.0),
        bar(*rate, "close", 64, "go", 1.0),
        bar(*p99, "keep-alive", 64, "haproxy", 0.5),
        bar(*p99, "keep-alive", 512, "haproxy", 0.5),
    ]


def growth(results: Results) -> list[Bar]:
    bars = []
    for mode in ("keep-alive", "close"):
        few, many = (
            values(results.loads, "cpu_per_request", server="ours", mode=mode, connections=count)
            for count in (64, 512)
        )
        text = f"CPU per request, {mode}, 512 connections: × that at 64"
        bars.append(Bar(text, ratio(many, few).value, 1.3, True))
    return bars


def footprint(results: Results) -> list[Bar]:
    def megabytes(idle: int) -> float:
        return median(values(results.memory, "resident_bytes", server="ours", idle=idle)) / 1e6

    start = median(values(results.starts, "milliseconds", server="ours"))
    return [
        Bar("RSS at start, MB", megabytes(0), 1.5, True),
        Bar("RSS with 1,000 idle connections, MB", megabytes(1000), 9, True),
        Bar("from exec to the first answer, ms", start, 10, True),
    ]


def bystanders(results: Results) -> list[Bar]:
    def bar(text: str, name: str, mine: str, other: str) -> Bar:
        here, there = (values(results.bystanders, name, neighbour=key) for key in (mine, other))
        return Bar(text, ratio(here, there).value, 0.98, False)

    many = "1,000 CIDRs: × one CIDR"
    return [
        bar(f"a bystander's requests/s, {many}", "requests_per_second", "ours-1000", "ours"),
        bar(f"a bystander's throughput, {many}", "gigabits_per_second", "ours-1000", "ours"),
        bar("a bystander's throughput: × without rules", "gigabits_per_second", "ours", "none"),
    ]
