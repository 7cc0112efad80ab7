"""`tandem chat`: a conversation in a terminal. Speaks HTTP only."""

import json
import signal
import sys
import threading
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError

from rich.console import Console

from mesh.errors import ConfigurationError

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 600.0  # between two pieces of an answer
EVENT = b"data: "
DONE = b"[DONE]"
# A model may write anything, also what a terminal would obey.
UNPRINTABLE = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
GREETING = (
    "[dim]{model} at {url} - Ctrl-C stops an answer, /reset forgets, Ctrl-D leaves[/]"
)
# What to ask the model of this name, for someone who does not know it yet.
EXAMPLES = {
    "demo": (
        "What is 47 + 85?",
        'How many times does "r" appear in "strawberry"?',
        "What is park?",
    ),
}

# What leads to the mesh never leaves through a proxy.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AnswerFailed(Exception):
    """There is no answer, or no more of it; the text says why."""


class Conversation:
    """What was said so far, and the model it is said to."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._turns: list[dict[str, str]] = []
        self.model = self._first_model()

    def _first_model(self) -> str:
        try:
            with _opener.open(f"{self._url}/v1/models", None, CONNECT_SECONDS) as reply:
                return str(json.load(reply)["data"][0]["id"])
        except (OSError, HTTPException, ValueError, LookupError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigurationError(
                f"no mesh answers at {self._url}: {reason}"
            ) from None

    def reset(self) -> None:
        self._turns.clear()

    def ask(self, question: str) -> Generator[str]:
        """The answer piece by piece. What came of it is remembered, if anything did."""
        self._turns.append({"role": "user", "content": question})
        answer = ""
        try:
            for piece in self._pieces():
                answer += piece
                yield piece
        finally:
            if answer:
                self._turns.append({"role": "assistant", "content": answer})
            else:
                self._turns.pop()

    def _pieces(self) -> Iterator[str]:
        body = {"model": self.model, "messages": self._turns, "stream": True}
        request = urllib.request.Request(
            f"{self._url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with _opener.open(request, timeout=ANSWER_SECONDS) as reply:
                for event in _events(reply):
                    yield _text(event)
        except HTTPError as error:
            raise AnswerFailed(_reason(error)) from None
        except (OSError, HTTPException) as error:
            raise AnswerFailed(f"the connection broke: {error}") from None


def _events(reply: HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in reply:
        if line.startswith(EVENT) and line.strip() != EVENT + DONE:
            yield json.loads(line[len(EVENT) :])


def _text(event: dict[str, Any]) -> str:
    if "error" in event:
        raise AnswerFailed(event["error"]["message"])
    choices = event["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


def _reason(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP status {error.code}"


def run(url: str) -> None:
    """Talk until the input ends; ConfigurationError when nobody is there."""
    console = Console(highlight=False)
    conversation = Conversation(url)
    if sys.stdin.isatty():
        import readline  # noqa: F401  # line editing and history in input()

        console.print(GREETING.format(model=conversation.model, url=url))
        for example in EXAMPLES.get(conversation.model, ()):
            console.print(f"[dim]Ask it:[/] {example}")
    for question in _questions(console):
        if question == "/reset":
            conversation.reset()
        elif question:
            _answer(console, conversation, question)


def _questions(console: Console) -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from map(str.strip, sys.stdin)
        return
    while True:
        try:
            yield input("> ").strip()  # not rich's: readline must know the prompt
        except KeyboardInterrupt:
            console.print()
        except EOFError:
            console.print()
            return


def _answer(console: Console, conversation: Conversation, question: str) -> None:
    try:
        with _noticed() as interrupted, closing(conversation.ask(question)) as pieces:
            _show(pieces, interrupted)
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/]", end="")
    except AnswerFailed as error:
        print(f"tandem: {error}", file=sys.stderr)
    console.print()


def _show(pieces: Iterator[str], interrupted: threading.Event) -> None:
    for piece in pieces:
        if interrupted.is_set():
            raise KeyboardInterrupt
        print(piece.translate(UNPRINTABLE), end="", flush=True)


@contextmanager
def _noticed() -> Iterator[threading.Event]:
    """Ctrl-C raises as always, and is remembered: an interrupt that comes while the
    interpreter calls back, as at the end of an object, is raised where nobody sees it.
    """
    interrupted = threading.Event()

    def notice(_number: int, _frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, notice)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
