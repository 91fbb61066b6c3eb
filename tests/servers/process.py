"""Runs server programs so that they can be stopped, frozen and killed as one, and never outlive the run that started them."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SERVERS_VENV = REPOSITORY / ".venv-servers"

# A shell that waits on a pipe held by us. When we die, however we die, the pipe closes and the shell kills the group, and what
# was started from it and has left it, as PostgreSQL's back-ends do. PR_SET_PDEATHSIG would not do: it follows the starting thread,
# and the servers' own children do not inherit it. The shell sits in a group of its own, so that freezing the servers does not
# freeze it, and a signal to our group does not end it.
_GUARD = r"""
trap '' INT TERM HUP
while read -r pgid; do group=$pgid; done
family() {
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v group="$group" '
        { pid = $1; sub(/^.*\) /, "") }
        $1 != "Z" { parent[pid] = $2; if ($3 == group) ours[pid] = 1 }
        END {
            do {
                more = 0
                for (pid in parent) if (!(pid in ours) && (parent[pid] in ours)) more = ours[pid] = 1
            } while (more)
            for (pid in ours) print pid
        }'
}
for try in 1 2 3 4 5 6 7 8 9; do
    pids=$(family)
    [ -n "$group" ] && [ -n "$pids" ] || break
    kill -s KILL $pids
    sleep 0.1
done
[ $# -gt 0 ] && "$@"
exit 0
"""

_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


class ServerError(RuntimeError):
    """A server did not start, died or did not answer; the message holds the end of its log."""


def _forget_guards_in_child() -> None:
    # A forked child must not hold the pipe: the servers would then live as long as the child does.
    for guard in list(_guards):
        guard.forget()


os.register_at_fork(after_in_child=_forget_guards_in_child)


def servers_program(name: str) -> str:
    """Path of a program of the servers' own virtual environment; ServerError says how to make that."""
    path = SERVERS_VENV / "bin" / name
    if not path.exists():
        raise ServerError(f"{path} is missing: run `make setup`, which builds the servers' virtual environment")
    return str(path)


def system_program(name: str, package: str) -> str:
    """Path of a program of the system; ServerError names the Debian package to install."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise ServerError(f"the program {name} is missing: run `make setup` (Debian package {package})")
    return path


# Ports that this process has claimed, each with the descriptor that keeps the claim.
_claims: dict[int, int] = {}


def _claim(port: int) -> bool:
    """Keep other runs on this machine from choosing the port in the seconds before its server listens (or between two starts).

    The claim is a name in the kernel's abstract socket space: it ends with this process, however that ends.
    """
    if port in _claims:
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0cloudstorage-tests-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims[port] = claim.detach()
    return True


def free_ports(count: int) -> list[int]:
    """`count` different free loopback TCP ports that no other run of these tests will choose.

    They lie below the kernel's ephemeral range (32768 and up), so that no outgoing connection takes one while the server
    that owns it is down for a restart.
    """
    candidates = random.SystemRandom().sample(range(12000, 32000), 2000)
    found: list[int] = []
    for port in candidates:
        if port not in _claims and port_is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise ServerError(f"no {count} free ports on 127.0.0.1 between 12000 and 32000")


def port_is_free(port: int) -> bool:
    """Whether a server of ours could listen on this loopback port now; if so the port is ours until this process ends."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return _claim(port)


def accepts_connections(port: int) -> bool:
    """Whether something listens on this loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process; None when there is none of that number."""
    try:
        # After the program's name, which may hold blanks and brackets.
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return state, int(parent)


def _parents() -> dict[int, int]:
    """Parent of every process of the machine."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: stat[1] for pid in pids if (stat := _stat(pid)) is not None}


def _is_alive(pid: int) -> bool:
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX"


class Guard:
    """Kills a process group with all that comes from it when *this* process has died, and then runs a command."""

    def __init__(self, pgid: int, on_death: Sequence[str] = ()) -> None:
        self._shell: subprocess.Popen[bytes] | None = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", *on_death],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        _guards.add(self)
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{pgid}\n".encode())
        self._shell.stdin.flush()

    def dismiss(self) -> None:
        """The group is gone. Killed rather than told by end of file: the group's number may belong to someone else by now."""
        if self._shell is not None:
            self._shell.kill()
            self._shell.wait()
        self.forget()

    def forget(self) -> None:
        """Also called in a forked child: the group belongs to the parent."""
        if self._shell is not None and self._shell.stdin is not None:
            self._shell.stdin.close()
        self._shell = None


class ProcessGroup:
    """Server processes and their children, one process group, one log file per program."""

    def __init__(self, name: str, log_directory: Path, *, on_death: Sequence[str] = ()) -> None:
        """`on_death` is a command run after the group was killed because *this* process died."""
        self.name = name
        self.log_directory = log_directory
        self._on_death = list(on_death)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: Guard | None = None
        self._pgid = 0
        self._owner = os.getpid()

    @property
    def running(self) -> bool:
        """Whether every program that was started still runs."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes.values())

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start one more program in the group; `env` is added to ours, output goes to `<log_directory>/<name>.log`."""
        self.log_directory.mkdir(parents=True, exist_ok=True)
        with self.log_path(name).open("ab") as log:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | dict(env or {}),
                cwd=cwd,
                process_group=self._pgid,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        if not self._pgid:
            self._pgid = process.pid
            self._guard = Guard(self._pgid, self._on_death)
            atexit.register(self.kill)
        self._processes[name] = process

    def log_path(self, name: str) -> Path:
        return self.log_directory / f"{name}.log"

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of every program's log, for error messages."""
        parts = []
        for name in self._processes:
            text = self.log_path(name).read_text(errors="replace").splitlines()
            parts.append("\n".join([f"--- end of {self.log_path(name)}", *text[-lines:]]))
        return "\n".join(parts)

    def wait_until(self, ready: Callable[[], bool], what: str, timeout: float = 60) -> None:
        """Poll `ready` until true; ServerError with the logs' ends when a program exits or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while not ready():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise ServerError(
                        f"{self.name}: {name} ended with status {process.returncode} while waiting until {what}\n"
                        f"{self.log_tail()}"
                    )
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name}: gave up after {timeout:g} s waiting until {what}\n{self.log_tail()}")
            time.sleep(0.03)

    def _members(self) -> set[int]:
        """Process ids of the programs that still run and of everything below them, also of what left the group."""
        members = {process.pid for process in self._processes.values() if process.poll() is None}
        parents = _parents()
        while more := {pid for pid, parent in parents.items() if parent in members} - members:
            members |= more
        return members

    def _signal(self, number: int) -> set[int]:
        if not self._pgid or self._owner != os.getpid():
            return set()
        members = self._members()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pgid, number)
        for pid in members:
            # PostgreSQL's back-ends, for one, each have a session of their own.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return members

    def freeze(self) -> None:
        """Stop every process where it stands (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen processes go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10) -> None:
        """Ask every process to end, then kill what is left after `timeout` seconds."""
        self.thaw()
        self._signal(number)
        deadline = time.monotonic() + timeout
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End every process at once (SIGKILL) and wait until they are gone. May be called twice."""
        if self._owner != os.getpid():
            return
        members = self._signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        deadline = time.monotonic() + 10
        while any(_is_alive(pid) for pid in members):
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name}: processes {sorted(members)} do not end after SIGKILL")
            time.sleep(0.01)
        self._processes = {}
        self._pgid = 0
        if self._guard is not None:
            self._guard.dismiss()
        self._guard = None
        atexit.unregister(self.kill)
