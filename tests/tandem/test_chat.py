"""`tandem chat` against a small gateway that tells what it was asked."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
from waiting import wait_until

CTRL_D = "\x04"
CHAT = [sys.executable, "-m", "tandem", "chat", "--url"]


@dataclass
class Gateway:
    """What the fake answers, and what it was asked."""

    pieces: list[str] = field(default_factory=lambda: ["Hel", "lo"])
    model: str = "one"
    status: int = 200
    is_endless: bool = False
    asked: list[list[dict[str, str]]] = field(default_factory=list)
    client_gone: Event = field(default_factory=Event)
    url: str = ""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    fake = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(200, "application/json")
            self.wfile.write(json.dumps({"data": [{"id": fake.model}]}).encode())

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            fake.asked.append(json.loads(self.rfile.read(length))["messages"])
            if fake.status != 200:
                self._say(fake.status, "application/json")
                self.wfile.write(b'{"error": {"message": "too long"}}')
                return
            self._say(200, "text/event-stream")
            self._stream()

        def _stream(self) -> None:
            try:
                while True:
                    for piece in fake.pieces:
                        self._event({"choices": [{"delta": {"content": piece}}]})
                    if not fake.is_endless:
                        break
            except OSError:
                fake.client_gone.set()
                return
            self._event({"choices": [], "usage": {}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

        def _say(self, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.01,), name="gateway").start()
        yield fake
        server.shutdown()


def chat(gateway: Gateway, *lines: str) -> subprocess.CompletedProcess[str]:
    """A chat whose questions come from a pipe."""
    return subprocess.run(
        [*CHAT, gateway.url],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )


def test_each_line_of_a_pipe_is_a_question(gateway: Gateway) -> None:
    """
    Answers come out as plain lines, and the conversation is remembered.
    """
    result = chat(gateway, "hi", "", "and you?")

    assert result.stdout == "Hello\nHello\n"
    assert gateway.asked[1] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "and you?"},
    ]


def test_reset_forgets_the_conversation(gateway: Gateway) -> None:
    """
    After /reset the next question is the first.
    """
    chat(gateway, "hi", "/reset", "again")

    assert gateway.asked == [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": "again"}],
    ]


def test_a_refused_question_is_not_remembered(gateway: Gateway) -> None:
    """
    The gateway's own words reach the person, and the next question stands alone.
    """
    gateway.status = 400

    result = chat(gateway, "too long a question", "short")

    assert result.stderr == "tandem: too long\n" * 2
    assert gateway.asked[1] == [{"role": "user", "content": "short"}]


def test_a_model_cannot_drive_the_terminal(gateway: Gateway) -> None:
    """
    Control characters of an answer are dropped; markup is text.
    """
    gateway.pieces = ["\x1b[2J", "[red]", "a\tb\n", "c\r"]

    result = chat(gateway, "hi")

    assert result.stdout == "[2J[red]a\tb\nc\n"


async def test_the_demo_model_comes_with_questions(gateway: Gateway) -> None:
    """
    Someone who meets the demo model reads three questions to begin with.
    """
    gateway.model = "demo"

    with terminal(gateway) as (process, screen):
        await wait_until(lambda: screen.read().endswith("> "))
        screen.type(CTRL_D)
        await wait_until(lambda: process.poll() is not None)

    assert screen.read().count("Ask it: ") == 3


async def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(gateway: Gateway) -> None:
    """
    In a terminal an answer can be broken off, and the conversation goes on.
    """
    gateway.is_endless = True

    with terminal(gateway) as (process, screen):
        await wait_until(lambda: "> " in screen.read())
        screen.type("talk\n")
        await wait_until(lambda: "HelloHello" in screen.read())
        process.send_signal(signal.SIGINT)
        await wait_until(lambda: "(stopped)" in screen.read())
        await wait_until(lambda: screen.read().endswith("> "))
        screen.type(CTRL_D)
        await wait_until(lambda: process.poll() is not None)

    assert process.returncode == 0
    assert gateway.client_gone.wait(5)


@contextmanager
def terminal(
    gateway: Gateway,
) -> Iterator[tuple[subprocess.Popen[bytes], "Screen"]]:
    """A chat in a terminal, and what it shows."""
    ours, theirs = pty.openpty()
    with (
        subprocess.Popen(
            [*CHAT, gateway.url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "dumb"},
        ) as process,
        ExitStack() as at_the_end,
    ):
        at_the_end.callback(os.close, ours)
        at_the_end.callback(process.kill)  # a failed test must not wait for it
        os.close(theirs)
        yield process, Screen(ours)


class Screen:
    """What a terminal has shown so far."""

    def __init__(self, terminal: int) -> None:
        os.set_blocking(terminal, False)
        self._terminal = terminal
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read(self) -> str:
        with suppress(OSError):  # nothing new, or the other side has left
            self._shown += os.read(self._terminal, 65536).decode(errors="replace")
        return self._shown
