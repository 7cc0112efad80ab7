"""A fork server: it has imported what takes long, and forks the processes that need it.

Who wants a process connects to the stem's socket and sends one message: a command line
`python ... -m MODULE ...`, settings, and the descriptors of stdout and stderr. It is
answered with the process's id, and at its end with its exit code (minus a signal). The
connection is the process's life: when who asked is gone, it is killed.

Knows no service. Single-threaded: only what is safe to fork may be imported before.
"""

import ctypes
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mesh.parentage import die_with_parent
from mesh.settings import PREFIX

MAX_REQUEST_BYTES = 65536
REQUEST_SECONDS = 5.0  # it is sent as soon as the connection is made
STDIN, STDOUT, STDERR = range(3)
START, END = 48, 49  # of the command line in memory: fields of proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Fork:
    """What a new process is to be; it alone gets to see this."""

    argv: list[str]
    settings: dict[str, str]

    def run(self) -> None:
        """Be that program from now on, as if it had been started by itself."""
        at = self.argv.index("-m") + 1
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        os.environ.update(self.settings)
        sys.orig_argv[:] = self.argv
        sys.argv[:] = self.argv[at:]
        _show(self.argv)
        runpy.run_module(self.argv[at], run_name="__main__", alter_sys=True)


@dataclass(slots=True)
class Stem:
    """The forks that run, each with the connection of who asked for it."""

    listener: socket.socket
    _lines: dict[int, socket.socket] = field(default_factory=dict)  # by process id

    def wait(self) -> Fork:
        """Serve for ever. Returns in each fork, and there nothing of the stem is open."""
        gc.collect()
        gc.freeze()  # what is never collected stays shared with the forks
        with ExitStack() as stack:
            ended, wakes = socket.socketpair()
            stack.enter_context(ended)
            stack.enter_context(wakes)
            stack.enter_context(self.listener)
            stack.callback(self._leave)
            for end in (ended, wakes, self.listener):
                end.setblocking(False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.set_wakeup_fd(wakes.fileno())
            looking = stack.enter_context(selectors.DefaultSelector())
            looking.register(self.listener, selectors.EVENT_READ)
            looking.register(ended, selectors.EVENT_READ)
            while True:
                for key, _ in looking.select():
                    fork = self._serve(key.fileobj, ended, looking)
                    if fork is not None:
                        return fork

    def _serve(
        self, ready: Any, ended: socket.socket, looking: selectors.BaseSelector
    ) -> Fork | None:
        if ready is self.listener:
            return self._accept(looking)
        if ready is ended:
            ended.recv(MAX_REQUEST_BYTES)
            self._reap(looking)
        else:
            self._hung_up(ready, looking)
        return None

    def _accept(self, looking: selectors.BaseSelector) -> Fork | None:
        line, _ = self.listener.accept()
        line.settimeout(REQUEST_SECONDS)
        body, outputs = b"", list[int]()
        with suppress(OSError):  # who asked is gone
            body, outputs, _, _ = socket.recv_fds(line, MAX_REQUEST_BYTES, 2)
        if not body:
            line.close()
            return None
        fork = Fork(**json.loads(body))
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            line.close()
            _become_leader(parent, outputs)
            return fork
        for descriptor in outputs:
            os.close(descriptor)
        self._lines[pid] = line
        looking.register(line, selectors.EVENT_READ)
        with suppress(OSError):  # the same
            line.send(b"%d" % pid)
        return None

    def _reap(self, looking: selectors.BaseSelector) -> None:
        with suppress(ChildProcessError):  # none is left
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = found
                line = self._lines.pop(pid)
                with suppress(KeyError):  # who asked hung up
                    looking.unregister(line)
                with line, suppress(OSError):
                    line.send(b"%d" % os.waitstatus_to_exitcode(status))

    def _hung_up(self, line: Any, looking: selectors.BaseSelector) -> None:
        for pid, whose in self._lines.items():
            if whose is line:
                looking.unregister(line)
                os.kill(pid, signal.SIGKILL)
                with suppress(ProcessLookupError):  # it leads no group yet
                    os.killpg(pid, signal.SIGKILL)

    def _leave(self) -> None:
        """In a fork: the others' lines are not its own."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for line in self._lines.values():
            line.close()


def serve(listener: socket.socket) -> NoReturn:
    """Fork what is asked for, for ever; each fork runs its program, and ends."""
    Stem(listener).wait().run()
    sys.exit(0)


def _become_leader(parent: int, outputs: list[int]) -> None:
    """Of a session of its own, that dies with the stem, with these as its outputs."""
    os.setsid()
    die_with_parent(parent)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in zip(
        (nothing, *outputs), (STDIN, STDOUT, STDERR), strict=True
    ):
        os.dup2(descriptor, target)
        os.close(descriptor)


def _show(argv: list[str]) -> None:
    """To `ps`: the command line is written over the stem's own, as far as that goes."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(") ")[2].split()  # from the third one on
    start, end = int(fields[START - 3]), int(fields[END - 3])
    shown = b"\0".join(map(os.fsencode, argv))[: max(0, end - start - 1)]
    if start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, shown, len(shown))
