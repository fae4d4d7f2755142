"""The servers, and the rules that capture their requests.

tproxy-pod installs its own rules. They are read while it runs, and installed unchanged for the others,
except for the owner of the table. One server and one set of rules at a time.
"""

import json
import re
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator

from lab import PATIENCE, POD, SCRATCH, Lab, run, running
from processes import Family

PORT = 8180
TARGET = "/hello"
AGENT = "bench"
MAX_CONNECTIONS = 6000
TABLE = "table inet tproxy-pod"
BENCH = Path(__file__).parent
LOG = SCRATCH / "server.log"


@dataclass(frozen=True)
class Server:
    """A program that answers captured requests at 127.0.0.1:1."""

    key: str
    name: str
    command: list[str]
    logs: bool = True
    own_rules: bool = False


@dataclass(frozen=True)
class Binaries:
    """Paths of the binaries: the servers, the paced client, and the neighbour."""

    ours: Path
    go: Path
    floor: Path
    haproxy: Path
    paced: Path
    neighbour: Path


def all_servers(binaries: Binaries, answer: int) -> list[Server]:
    """The servers; the floor's response has `answer` bytes."""
    config = SCRATCH / "haproxy.cfg"
    template = (BENCH / "haproxy.cfg").read_text()
    config.write_text(template.replace("MAX_CONNECTIONS", str(MAX_CONNECTIONS)))
    return [
        ours(binaries.ours),
        Server("haproxy", "HAProxy", [str(binaries.haproxy), "-db", "-f", str(config)]),
        Server("go", "Go", [str(binaries.go)]),
        Server("floor", "floor", floor(binaries.floor, "127.0.0.1", 1, answer), logs=False),
    ]


def select(servers: list[Server], words: list[str]) -> list[Server]:
    """The servers of the given keys; an absolute path is another tproxy-pod.

    ValueError names a word that is neither.
    """
    by_key = {server.key: server for server in servers}
    selected = []
    for word in words:
        if word.startswith("/"):
            name = f"tproxy-pod {word}"
            selected.append(replace(ours(Path(word)), key=word, name=name))
        elif word in by_key:
            selected.append(by_key[word])
        else:
            raise ValueError(f"{word}: expected an absolute path, or one of {', '.join(by_key)}")
    return selected


def ours(binary: Path, *options: str) -> Server:
    command = [str(binary), "--max-connections", str(MAX_CONNECTIONS), *options]
    return Server("ours", "tproxy-pod", command, own_rules=True)


def floor(binary: Path, address: str, port: int, answer: int) -> list[str]:
    return [str(binary), address, str(port), str(answer)]


@dataclass(frozen=True)
class Rules:
    """Rules of tproxy-pod: table, mark rule and AnyIP route."""

    table: str
    rule: str
    route: str

    @staticmethod
    def read() -> "Rules":
        """The installed rules."""
        [rule] = [each for each in json.loads(run("ip -j rule")) if each.get("table") == "100"]
        [route] = json.loads(run("ip -j route show table 100"))
        mark = f"{rule['fwmark']}/{rule['fwmask']}"
        return Rules(
            table=unowned(run(f"nft list {TABLE}")),
            rule=f"pref {rule['priority']} fwmark {mark} lookup 100",
            route=f"{route['type']} {route['dst']} dev {route['dev']} table 100",
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        run("nft -f -", self.table)
        run(f"ip rule add {self.rule}")
        run(f"ip route add {self.route}")
        if Rules.read() != self:
            raise RuntimeError(f"the kernel has other rules than tproxy-pod's:\n{Rules.read()}")
        try:
            yield
        finally:
            run(f"nft delete {TABLE}")
            run(f"ip rule del {self.rule}")
            run(f"ip route del {self.route}")


def unowned(table: str) -> str:
    """The table without its owner, for another process to load, and without what rules added to sets."""
    without_flags = re.sub(r"\n\tflags owner\n\n", "\n", table)
    without_elements = re.sub(r"\n\t\telements = \{[^}]* expires [^}]*\}", "", without_flags)
    # Where a rule of IPv4 does not compare the protocol itself, nft lists addresses as bytes, and cannot load them.
    addresses = without_elements.replace("@nh,96,32 . @nh,128,32", "ip saddr . ip daddr")
    return re.sub(r" # progname \S+", "", addresses)


@contextmanager
def behind_rules(server: Server, rules: Rules) -> Iterator[None]:
    """Installs the rules for a server that does not install them itself."""
    if server.own_rules:
        yield
    else:
        with rules.installed():
            yield


@contextmanager
def serving(lab: Lab, server: Server, rules: Rules) -> Iterator[Family]:
    """A new process of a server, after its first response to a captured request."""
    with behind_rules(server, rules), running(server.command, LOG) as process:
        until_answered(lab, process)
        yield Family.of(process.pid)


def log_lines() -> int:
    """Lines of the last server's log."""
    with LOG.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def request(*, close: bool = False) -> bytes:
    """The same request as wrk's."""
    fields = [f"GET {TARGET} HTTP/1.1", f"Host: {POD}:{PORT}", f"User-Agent: {AGENT}"]
    fields += ["Connection: close"] * close
    return "\r\n".join([*fields, "", ""]).encode()


def ask(connection: socket.socket, question: bytes) -> bytes:
    """Sends a request; returns the whole response, by its Content-Length."""
    connection.sendall(question)
    answer = b""
    while True:
        piece = connection.recv(16 * 1024)
        if not piece:
            raise ConnectionError("the connection ended within an answer")
        answer += piece
        head, blank, content = answer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if blank and length and len(content) >= int(length[1]):
            return answer


def connect() -> socket.socket:
    """Connects to a captured address and port, in the namespace of this thread."""
    connection = socket.create_connection((POD, PORT), timeout=PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def until_answered(lab: Lab, process: subprocess.Popen[bytes]) -> bytes:
    """Sends requests until one is answered: without a server, the Pod's kernel refuses connections."""
    deadline = time.monotonic() + PATIENCE
    with lab.client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with connect() as connection:
                    return ask(connection, request(close=True))
            except OSError:
                continue
    raise RuntimeError(f"{process.args} does not answer:\n{LOG.read_text()[-2000:]}")


def discover(lab: Lab, server: Server) -> tuple[Rules, int]:
    """The rules of tproxy-pod, and the length of its response."""
    with running(server.command, LOG) as process:
        until_answered(lab, process)
        with lab.client, connect() as connection:
            answer = ask(connection, request())
        return Rules.read(), len(answer)
