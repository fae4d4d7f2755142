"""All measurements, and their medians and ratios."""

from dataclasses import dataclass, field
from statistics import median
from typing import Iterable

from bystanders import BystanderRun
from footprint import MemoryRun, StartRun
from load import LoadRun
from paced import BaselineRun, PacedRun, neighbour_count


@dataclass
class Results:
    """All measurements, and the machine."""

    machine: dict[str, str]
    answer: int
    """Length of tproxy-pod's response, in bytes."""
    answer_bytes: dict[str, int] = field(default_factory=dict)
    image_bytes: dict[str, int] = field(default_factory=dict)
    loads: list[LoadRun] = field(default_factory=list)
    paced: list[PacedRun] = field(default_factory=list)
    baselines: list[BaselineRun] = field(default_factory=list)
    memory: list[MemoryRun] = field(default_factory=list)
    starts: list[StartRun] = field(default_factory=list)
    bystanders: list[BystanderRun] = field(default_factory=list)

    def requests(self, name: str, server: str, cell: str) -> list[float]:
        """A number of each run of a cell, be it of `load` or `paced`, in the order of the rounds."""
        return values([*self.loads, *self.paced], name, server=server, cell=cell)

    def work_lost(self, server: str, cell: str) -> list[float]:
        """The part of the neighbours' work that they lost, by round."""
        with_server = self.requests("passes_per_second", server, cell)
        without = values(self.baselines, "passes_per_second", cell=cell)
        return [1 - some / full for some, full in zip(with_server, without, strict=True)]

    def cpu_lost(self, server: str, cell: str) -> list[float]:
        """The processor time that the neighbours lost to each request, in µs, by round."""
        rates = self.requests("requests_per_second", server, cell)
        cores = neighbour_count()
        lost = self.work_lost(server, cell)
        return [part * cores / rate * 1e6 for part, rate in zip(lost, rates, strict=True)]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, with the lowest and the highest ratio of a single round."""

    value: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.lowest:.3g}–{self.highest:.3g})"


def values(runs: Iterable, name: str, **where: object) -> list[float]:
    """A number of each matching run, in the order of the rounds."""
    fitting = [run for run in runs if all(getattr(run, key) == it for key, it in where.items())]
    return [getattr(run, name) for run in fitting]


def ratio(mine: list[float], theirs: list[float]) -> Ratio:
    """The ratio of two lists with a number for each round."""
    rounds = [a / b for a, b in zip(mine, theirs, strict=True)]
    return Ratio(median(mine) / median(theirs), min(rounds), max(rounds))
