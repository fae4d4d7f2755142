"""Performance targets of tproxy-pod, and whether this run meets them.

A target whose numbers this run did not measure is left out.
"""

from dataclasses import dataclass
from statistics import median

from paced import ALL_CELLS
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


@dataclass(frozen=True)
class Quantity:
    """A number of a run, and whether less of it is better."""

    name: str
    text: str
    at_most: bool


CPU = Quantity("cpu_per_request", "CPU per request", at_most=True)
RATE = Quantity("requests_per_second", "requests/s", at_most=False)
P99 = Quantity("p99", "p99", at_most=True)

FEW = ["keep-alive-1", "keep-alive-8", "keep-alive-64"]
CLOSE = ["close-1", "close-64", "close-512"]
EVERY = [cell.key for cell in ALL_CELLS]

BESIDE_PEERS: list[tuple[Quantity, list[str], str, float]] = [
    (CPU, FEW, "haproxy", 0.95),
    (CPU, CLOSE, "haproxy", 0.60),
    (CPU, ["keep-alive-512"], "floor", 1.05),
    (RATE, FEW + CLOSE, "haproxy", 1.0),
    (P99, EVERY, "haproxy", 1.0),
    (CPU, ["keep-alive-64", "close-64"], "go", 0.55),
    (RATE, ["keep-alive-64"], "go", 1.4),
    (RATE, ["close-64"], "go", 1.0),
]
"""Quantity, cells, peer, and the limit of the ratio to it."""


def all_bars(results: Results) -> list[Bar]:
    return [
        *beside_peers(results),
        *growth(results),
        *footprint(results),
        *bystanders(results),
    ]


def beside_peers(results: Results) -> list[Bar]:
    bars = []
    for quantity, cells, peer, limit in BESIDE_PEERS:
        for cell in cells:
            mine, theirs = (results.requests(quantity.name, key, cell) for key in ("ours", peer))
            if mine and theirs:
                label = {"haproxy": "HAProxy", "go": "Go", "floor": "the floor"}[peer]
                text = f"{quantity.text}, {cell}: × {label}"
                bars.append(Bar(text, ratio(mine, theirs).value, limit, quantity.at_most))
    return bars


def growth(results: Results) -> list[Bar]:
    bars = []
    for mode in ("keep-alive", "close"):
        few, many = (
            results.requests("cpu_per_request", "ours", f"{mode}-{count}") for count in (64, 512)
        )
        if few and many:
            text = f"CPU per request, {mode}-512: × that of {mode}-64"
            bars.append(Bar(text, ratio(many, few).value, 1.3, True))
    return bars


def footprint(results: Results) -> list[Bar]:
    def megabytes(idle: int) -> float:
        return median(values(results.memory, "resident_bytes", server="ours", idle=idle)) / 1e6

    starts = values(results.starts, "milliseconds", server="ours")
    if not starts:
        return []
    return [
        Bar("RSS at start, MB", megabytes(0), 1.5, True),
        Bar("RSS with 1,000 idle connections, MB", megabytes(1000), 9, True),
        Bar("from exec to the first answer, ms", median(starts), 10, True),
    ]


def bystanders(results: Results) -> list[Bar]:
    def bar(text: str, name: str, mine: str, other: str) -> Bar:
        here, there = (values(results.bystanders, name, rule_set=key) for key in (mine, other))
        return Bar(text, ratio(here, there).value, 0.98, False)

    if not results.bystanders:
        return []
    many = "1,000 CIDRs: × one CIDR"
    return [
        bar(f"a bystander's requests/s, {many}", "requests_per_second", "ours-1000", "ours"),
        bar(f"a bystander's throughput, {many}", "gigabits_per_second", "ours-1000", "ours"),
        bar("a bystander's throughput: × without rules", "gigabits_per_second", "ours", "none"),
    ]
