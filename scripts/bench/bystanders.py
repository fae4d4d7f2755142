"""The cost for traffic that is not captured, between client and Pod through the node.

The Pod runs an iperf3 server, and the floor on port 80. The node has no rules, tproxy-pod's, or those of
the kernel's documentation (tproxy.rst), which look up the socket of every TCP packet.
"""

import json
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Callable, ContextManager, Iterator

from lab import POD, SCRATCH, Lab, pinned, run, running, until
from load import Cell, wrk
from servers import Binaries, Rules, floor, ours, serving

DIVERT = """\
*mangle
:DIVERT - [0:0]
-A PREROUTING -p tcp -m socket --transparent -j DIVERT
-A PREROUTING -d 10.244.0.0/16 -p tcp --dport 8180 -j TPROXY --on-ip 127.0.0.1 --on-port 1 --tproxy-mark 0x1/0x1
-A DIVERT -j MARK --set-mark 1
-A DIVERT -j ACCEPT
COMMIT
"""

CLIENTS = Cell("keep-alive", 64)


@dataclass(frozen=True)
class RuleSet:
    """Rules on the node."""

    key: str
    name: str
    present: Callable[[], ContextManager[object]]


@dataclass(frozen=True)
class BystanderRun:
    """About one second of each kind of traffic."""

    round: int
    rule_set: str
    gigabits_per_second: float
    requests_per_second: float
    errors: dict[str, int]


def all_rule_sets(lab: Lab, binaries: Binaries, rules: Rules) -> list[RuleSet]:
    """In the order of a round. "Nothing" is there twice: the difference is noise."""

    def capturing(count: int) -> Callable[[], ContextManager[object]]:
        return lambda: serving(lab, ours(binaries.ours, "--cidr", cidrs(count)), rules)

    return [
        RuleSet("none", "nothing", nullcontext),
        RuleSet("ours", "tproxy-pod, 1 CIDR", capturing(1)),
        RuleSet("ours-100", "tproxy-pod, 100 CIDRs", capturing(100)),
        RuleSet("ours-1000", "tproxy-pod, 1,000 CIDRs", capturing(1000)),
        RuleSet("divert", "classic DIVERT rules", divert),
        RuleSet("none-again", "nothing, again", nullcontext),
    ]


def cidrs(count: int) -> str:
    """The Pod's block, and others that are not adjacent to any other."""
    others = [f"10.{128 + n // 128}.{n % 128 * 2}.0/24" for n in range(count - 1)]
    return ",".join(["10.244.0.0/24", *others])


@contextmanager
def divert() -> Iterator[None]:
    run("iptables-nft-restore --noflush", DIVERT)
    try:
        yield
    finally:
        run("nft delete table ip mangle")


@contextmanager
def pod_serves(lab: Lab, binaries: Binaries, answer: int) -> Iterator[None]:
    """The servers of the traffic, on their own core."""
    commands = {5201: ["iperf3", "-s"], 80: floor(binaries.floor, POD, 80, answer)}
    with ExitStack() as servers:
        with lab.pod, pinned(1):
            for port, command in commands.items():
                servers.enter_context(running(command, SCRATCH / f"pod-{port}.log"))
                until(f"port {port} is open", lambda: run(f"ss -Hltn sport = :{port}"))
        yield


def measure(lab: Lab, rule_set: RuleSet, number: int, seconds: float) -> BystanderRun:
    """Measures the client, on its own core; one second of throughput is the minimum of iperf3."""
    with rule_set.present(), lab.client, pinned(0):
        stream = json.loads(run(f"iperf3 -c {POD} -t 1 -C cubic -J"))
        report = wrk(f"http://{POD}/", CLIENTS, seconds)
    return BystanderRun(
        round=number,
        rule_set=rule_set.key,
        gigabits_per_second=stream["end"]["sum_received"]["bits_per_second"] / 1e9,
        requests_per_second=report["requests"] / report["microseconds"] * 1e6,
        errors=report["errors"],
    )
