"""What a run measures, and how much of it."""

from dataclasses import dataclass, replace

from load import CELLS, Cell
from paced import ALL_CELLS, PACED_CELLS, PacedCell

PARTS = ("load", "paced", "footprint", "bystanders")


@dataclass(frozen=True)
class Plan:
    """Amount of measurements; times in seconds."""

    load_rounds: int
    load_seconds: float
    warm_up: float
    paced_rounds: int
    paced_seconds: float
    memory_rounds: int
    settle: float
    starts: int
    bystander_rounds: int
    bystander_seconds: float

    def with_rounds(self, rounds: int) -> "Plan":
        """A plan with the same number of rounds of everything."""
        return replace(
            self,
            load_rounds=rounds,
            paced_rounds=rounds,
            memory_rounds=rounds,
            starts=rounds,
            bystander_rounds=rounds,
        )


FULL = Plan(
    load_rounds=5,
    load_seconds=2.5,
    warm_up=0.5,
    paced_rounds=5,
    paced_seconds=3.0,
    memory_rounds=2,
    settle=2.0,
    starts=10,
    bystander_rounds=12,
    bystander_seconds=1.0,
)
QUICK = Plan(
    load_rounds=1,
    load_seconds=0.4,
    warm_up=0.1,
    paced_rounds=1,
    paced_seconds=0.4,
    memory_rounds=1,
    settle=1.0,
    starts=3,
    bystander_rounds=1,
    bystander_seconds=0.5,
)


@dataclass(frozen=True)
class Selection:
    """Parts of the benchmark, and cells of its first two."""

    load: list[Cell]
    paced: list[PacedCell]
    footprint: bool
    bystanders: bool

    @staticmethod
    def parse(words: list[str]) -> "Selection":
        """Each word is a part or the key of a cell; ValueError names the first that is neither."""
        known = [*PARTS, *[cell.key for cell in ALL_CELLS]]
        for word in words:
            if word not in known:
                raise ValueError(f"{word}: expected one of {', '.join(known)}")
        return Selection(
            load=[cell for cell in CELLS if {"load", cell.key} & {*words}],
            paced=[cell for cell in PACED_CELLS if {"paced", cell.key} & {*words}],
            footprint="footprint" in words,
            bystanders="bystanders" in words,
        )
