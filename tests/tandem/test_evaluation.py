"""`tandem eval-demo` against a small gateway that knows the answers, or some of them."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from mesh.errors import ConfigurationError
from tandem.evaluation import Exercise, questions, run

SEED, COUNT = 5, 3
NUM_FAMILIES = 15


class Gateway:
    """Answers the exercises of one seed; a family it does not know, wrongly."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.unknown_family = ""
        self.exercises = questions(SEED, COUNT)
        self.bodies: list[dict[str, Any]] = []

    def answer(self, body: dict[str, Any]) -> str:
        self.bodies.append(body)
        said = [message["content"] for message in body["messages"]]
        exercise = next(each for each in self.exercises if begins(each, said))
        if exercise.family == self.unknown_family:
            return "wrong"
        return exercise.turns[len(said) // 2][1]


def begins(exercise: Exercise, said: list[str]) -> bool:
    """Whether this is what was said so far in the exercise's conversation."""
    texts = [text for turn in exercise.turns for text in turn]
    return texts[: len(said)] == said


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    fake = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say({"data": [{"id": "demo"}]})

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            answer = fake.answer(json.loads(self.rfile.read(length)))
            self._say({"choices": [{"message": {"content": f" {answer}\n"}}]})

        def _say(self, reply: dict[str, Any]) -> None:
            body = json.dumps(reply).encode()
            self.send_response(fake.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.01,), name="gateway").start()
        yield fake
        server.shutdown()


def report(url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    run(url, seed=SEED, count=COUNT, as_json=True)
    return dict(json.loads(capsys.readouterr().out))


def test_a_mesh_that_knows_everything(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Every family is asked as often as was wanted, greedily, and white space is no mistake.
    """
    result = report(gateway.url, capsys)

    assert len(result["asked"]) == NUM_FAMILIES
    assert set(result["asked"].values()) == {COUNT}
    assert result["right"] == result["asked"]
    assert (result["accuracy"], result["mistakes"]) == (1.0, [])
    assert {body["temperature"] for body in gateway.bodies} == {0}


def test_a_mistake_is_told_with_what_was_expected(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A wrong answer counts for its family alone, ends its conversation, and can be read.
    """
    gateway.unknown_family = "follow-ups"

    result = report(gateway.url, capsys)

    assert result["right"]["follow-ups"] == 0
    assert result["accuracy"] == 1 - 1 / NUM_FAMILIES
    asked = {each.turns[0] for each in gateway.exercises}
    for mistake in result["mistakes"]:
        assert (mistake["question"], mistake["expected"]) in asked
        assert mistake["answer"] == "wrong"


def test_a_person_reads_a_table(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Without --json each family is a row, and the last line is all of them.
    """
    gateway.unknown_family = "addition"

    run(gateway.url, seed=SEED, count=COUNT, as_json=False)

    printed = capsys.readouterr().out
    (addition,) = [line for line in printed.splitlines() if "addition" in line]
    assert "0.0%" in addition
    assert f"{1 - 1 / NUM_FAMILIES:.1%}" in printed


def test_other_seeds_ask_other_questions() -> None:
    """
    A seed draws its own questions, and always the same.
    """
    first, again, other = (questions(seed, COUNT) for seed in (1, 1, 2))

    assert first == again
    assert not set(first) & set(other)


def test_a_mesh_that_fails_is_said(gateway: Gateway) -> None:
    """
    An error of the mesh is no wrong answer: it ends the evaluation with its reason.
    """
    gateway.status = 503

    with pytest.raises(ConfigurationError, match="503"):
        run(gateway.url, seed=SEED, count=1, as_json=True)
