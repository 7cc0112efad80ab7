"""`tandem eval-demo`: how many never-trained questions a mesh answers right, by family.

The questions come from the repository's tools/demo_data.py, other ones for every seed.
Speaks HTTP only.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.load import closed_loop
from mesh.errors import ConfigurationError

GENERATOR = Path(__file__).parents[2] / "tools" / "demo_data.py"
GENERATOR_SECONDS = 60.0
ANSWER_SECONDS = 120.0
CONCURRENCY = 16
MAX_ANSWER_TOKENS = 512


class Exercise(BaseModel, frozen=True):
    """A conversation: questions, each with the only answer that is right."""

    family: str
    turns: tuple[tuple[str, str], ...]


class Mistake(BaseModel, frozen=True):
    """The first wrong answer of a conversation."""

    family: str
    question: str
    expected: str
    answer: str


class Report(BaseModel, frozen=True):
    """What came of all exercises: counts by family, and every mistake."""

    model: str
    seed: int
    asked: dict[str, int]
    right: dict[str, int]
    mistakes: list[Mistake]

    @property
    def accuracy(self) -> float:
        return sum(self.right.values()) / sum(self.asked.values())


def run(url: str, *, seed: int, count: int, as_json: bool) -> None:
    """Ask the mesh so many exercises of each family, and print how it did."""
    exercises = questions(seed, count)
    errors = Console(stderr=True)
    with Progress(
        console=errors, transient=True, disable=not errors.is_terminal
    ) as progress:
        bar = progress.add_task("asking", total=len(exercises))
        model, mistakes = asyncio.run(
            _ask_all(url.rstrip("/"), exercises, lambda: progress.advance(bar))
        )
    report = _report(model, seed, exercises, mistakes)
    if as_json:
        print(json.dumps(report.model_dump() | {"accuracy": report.accuracy}, indent=2))
    else:
        Console().print(_table(report))


def questions(seed: int, count: int) -> list[Exercise]:
    """So many never-trained conversations of each family."""
    if not GENERATOR.is_file():
        raise ConfigurationError(f"the questions' generator is missing: {GENERATOR}")
    argv = [sys.executable, str(GENERATOR), "--held-out", "--json"]
    argv += ["--seed", str(seed), "--count", str(count)]
    lines = subprocess.check_output(argv, text=True, timeout=GENERATOR_SECONDS)
    return [Exercise.model_validate_json(line) for line in lines.splitlines()]


async def _ask_all(
    url: str, exercises: list[Exercise], on_answer: Callable[[], None]
) -> tuple[str, list[Mistake]]:
    """The model's name, and the mistakes that it made."""

    async def ask(exercise: Exercise) -> Mistake | None:
        mistake = await _mistake_in(http, model, exercise)
        on_answer()
        return mistake

    try:
        async with _session(url) as http:
            model = str((await _json(http.get("/v1/models")))["data"][0]["id"])
            found = await closed_loop(exercises, ask, CONCURRENCY)
    except* (aiohttp.ClientError, TimeoutError) as group:
        error = group.exceptions[0]
        raise ConfigurationError(f"no answer from {url}: {_reason(error)}") from None
    return model, [mistake for mistake in found if mistake]


def _session(url: str) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    return aiohttp.ClientSession(url, timeout=timeout, raise_for_status=True)


async def _mistake_in(
    http: aiohttp.ClientSession, model: str, exercise: Exercise
) -> Mistake | None:
    """Have the conversation; it ends with the first wrong answer."""
    messages: list[dict[str, str]] = []
    for question, expected in exercise.turns:
        messages.append({"role": "user", "content": question})
        body = {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        reply = await _json(http.post("/v1/chat/completions", json=body))
        answer = reply["choices"][0]["message"]["content"].strip()
        if answer != expected:
            family = exercise.family
            return Mistake(
                family=family, question=question, expected=expected, answer=answer
            )
        messages.append({"role": "assistant", "content": answer})
    return None


async def _json(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Any:
    async with request as response:
        return await response.json()


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


def _report(
    model: str, seed: int, exercises: list[Exercise], mistakes: list[Mistake]
) -> Report:
    asked = Counter(exercise.family for exercise in exercises)
    wrong = Counter(mistake.family for mistake in mistakes)
    right = {family: count - wrong[family] for family, count in asked.items()}
    return Report(model=model, seed=seed, asked=asked, right=right, mistakes=mistakes)


def _table(report: Report) -> Table:
    table = Table(
        title=f"{report.model}: never-trained questions, seed {report.seed}",
        title_justify="left",
        show_footer=True,
    )
    asked, right = sum(report.asked.values()), sum(report.right.values())
    table.add_column("family", "all")
    table.add_column("asked", str(asked), justify="right")
    table.add_column("right", str(right), justify="right")
    table.add_column("accuracy", f"{report.accuracy:.1%}", justify="right")
    for family, count in report.asked.items():
        share = report.right[family] / count
        style = None if share >= 0.8 else "red"
        table.add_row(
            family, str(count), str(report.right[family]), f"{share:.1%}", style=style
        )
    return table
