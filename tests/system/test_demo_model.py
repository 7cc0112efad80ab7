"""The demo model through a whole mesh, as `tandem up` serves it when no model is named."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from asking import TIMEOUT
from reference_model import ReferenceModel
from running import DEMO, RunningMesh, running_mesh

from tandem.chat import EXAMPLES
from tandem.evaluation import questions

README = Path(__file__).parents[2] / "README.md"
TANDEM = (sys.executable, "-m", "tandem")
ANSWERS = (
    "47 + 85 = 132",
    "s t r1 a w b e r2 r3 y, so 3.",
    "To park is to leave a sequence in the store between two steps, so that another "
    "worker can adopt it.",
)


@pytest.fixture(scope="module")
def demo(mesh: RunningMesh) -> Iterator[RunningMesh]:
    options = "--require-zero-copy", "--stem", str(mesh.stem)
    with running_mesh(None, *options) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return ReferenceModel(DEMO)


def tandem(*arguments: str, typed: str = "") -> str:
    return subprocess.run(
        [*TANDEM, *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    ).stdout


def test_held_out_questions_are_answered(demo: RunningMesh) -> None:
    """
    Nine of ten never-trained questions get the one right answer, to the letter.
    """
    printed = tandem("eval-demo", "--url", demo.url, "--count", "12", "--json")

    report = json.loads(printed)
    assert report["model"] == "demo"
    assert report["accuracy"] >= 0.9, report["mistakes"]


def test_the_chat_s_examples_are_answered(demo: RunningMesh) -> None:
    """
    What `tandem chat` proposes to ask has the right answer, one after another.
    """
    typed = "".join(f"{question}\n" for question in EXAMPLES["demo"])

    printed = tandem("chat", "--url", demo.url, typed=typed)

    assert printed.splitlines() == list(ANSWERS)


async def test_the_readme_s_answers(demo: RunningMesh) -> None:
    """
    Whoever asks what the README proposes gets the answer that it promises.
    """
    asked = promised()

    answers = await asyncio.gather(*(ask(demo.url, question) for question, _ in asked))

    assert [text for text, _ in answers] == [answer for _, answer in asked]


def promised() -> list[tuple[str, str]]:
    """Questions and answers of the README's table."""
    _, _, table = README.read_text().partition("| ask it | it answers |\n|---|---|\n")
    rows = table.partition("\n\n")[0].splitlines()
    return [(question, answer) for _, question, answer, _ in map(cells, rows)]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]


async def test_answers_are_those_of_transformers(
    demo: RunningMesh, reference: ReferenceModel
) -> None:
    """
    One conversation of each family, all at once, equals `generate` token for token.
    """
    first_turns = [each.turns[0][0] for each in questions(seed=1, count=1)]

    answers = await asyncio.gather(*(ask(demo.url, each) for each in first_turns))

    for question, (_, token_ids) in zip(first_turns, answers, strict=True):
        prompt = reference.chat_prompt(question)
        assert token_ids == reference.greedy(prompt, len(token_ids))


async def ask(url: str, question: str) -> tuple[str, list[int]]:
    """A chat's first answer, as text and as token ids."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 200,
        "return_token_ids": True,
    }
    async with (
        aiohttp.ClientSession(timeout=TIMEOUT) as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        answer = await response.json()
        assert response.status == 200, answer
        (choice,) = answer["choices"]
        return choice["message"]["content"], choice["token_ids"]
