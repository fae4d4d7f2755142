"""Three network namespaces in a row, client - node - pod, joined by veth pairs.

The process needs its own network namespace, which becomes the node, and its own mount namespace. Programs
and sockets belong to the namespace of the thread that creates them: `with lab.client:` moves the calling
thread to another one (setns(2)).
"""

import ctypes
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

CLONE_NEWNET = 0x40000000  # linux/sched.h
HERE = "/proc/thread-self/ns/net"
PATIENCE = 10.0
"""Longest wait for a condition, in seconds."""

SCRATCH = Path("/run")
"""A tmpfs for the logs of the servers."""

POD = "10.244.0.5"

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    """Raises errno of a failed call of libc."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Pins programs that are started inside to one core, modulo the number of cores."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def run(line: str, text: str | None = None, statuses: tuple[int, ...] = (0,)) -> str:
    """Runs a command line, split at blanks; returns its output."""
    done = subprocess.run(line.split(), input=text, capture_output=True, text=True)
    if done.returncode not in statuses:
        raise RuntimeError(f"{line}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Namespace:
    """A network namespace: a new one, or this thread's."""

    def __init__(self, *, new: bool) -> None:
        before = os.open(HERE, os.O_RDONLY)
        if new:
            checked(libc.unshare(CLONE_NEWNET))
        self.file = os.open(HERE, os.O_RDONLY)
        checked(libc.setns(before, CLONE_NEWNET))
        os.close(before)
        self.before: list[int] = []

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.file}"

    def __enter__(self) -> None:
        self.before.append(os.open(HERE, os.O_RDONLY))
        checked(libc.setns(self.file, CLONE_NEWNET))

    def __exit__(self, *_: object) -> None:
        before = self.before.pop()
        checked(libc.setns(before, CLONE_NEWNET))
        os.close(before)


class Lab:
    """The three namespaces, and the routes between them."""

    def __init__(self) -> None:
        run(f"mount -t tmpfs tmpfs {SCRATCH}")
        self.node = Namespace(new=False)
        self.client = Namespace(new=True)
        self.pod = Namespace(new=True)
        run("ip link set lo up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._link("client", self.client, "192.0.2.2", "192.0.2.1")
        self._link("pod", self.pod, POD, "10.244.0.1")
        # Where the client closes first, as with the floor and Go, its ports stay in TIME_WAIT until none is left.
        with self.client:
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535")
            Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("1")

    @staticmethod
    def _link(name: str, there: Namespace, its: str, ours: str) -> None:
        """Connects a namespace to the node."""
        run(f"ip link add {name} type veth peer name eth0 netns {there.path}")
        run(f"ip address add {ours}/24 dev {name}")
        run(f"ip link set {name} up")
        with there:
            run("ip link set lo up")
            run(f"ip address add {its}/24 dev eth0")
            run("ip link set eth0 up")
            run(f"ip route add default via {ours}")


def until(what: str, condition: Callable[[], object]) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"this did not happen: {what}")
        time.sleep(0.01)


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program until the block ends; its output goes to a file."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, close_fds=False
        )
    try:
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended by itself:\n{log.read_text()[-2000:]}")
    finally:
        process.terminate()
        process.wait()
