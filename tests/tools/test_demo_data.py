"""The demo model's items: the same for the same seed, and never asked what was trained."""

import json
import random
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from demo_data import (
    ASKED,
    FAMILIES,
    FINDING,
    SHARES,
    held_out,
    joined,
    training_items,
)
from demo_item import Item, is_kept_back
from demo_tasks import hurried

TOOLS = Path(__file__).parents[2] / "tools"
FACTS = TOOLS / "demo_facts.toml"
SEEDS = range(20)
TRAINED = 1000  # items of each seed
QUESTIONED = 100  # of each family


@pytest.fixture(scope="module")
def trained() -> list[Item]:
    """What trainings with many seeds see."""
    return [item for seed in SEEDS for item in islice(training_items(seed), TRAINED)]


@pytest.fixture(scope="module")
def asked() -> list[Item]:
    """What is asked afterwards, of every family."""
    rng = random.Random("asked")
    return [held_out(family, rng) for family in ASKED for _ in range(QUESTIONED)]


def plain(question: str) -> str:
    """The question whatever its case and its last mark."""
    return question.rstrip(".?").lower()


def conversations(item: Item) -> Iterator[tuple[object, ...]]:
    """What there is to go by for each answer: all before it, as a person reads it."""
    for n, (question, _) in enumerate(item.turns):
        yield *item.turns[:n], plain(question)


def run_command(*options: str) -> list[str]:
    command = [sys.executable, str(TOOLS / "demo_data.py"), *options]
    return subprocess.check_output(command, text=True, timeout=30).splitlines()


def test_a_hash_of_the_keys_says_which_side(
    trained: list[Item], asked: list[Item]
) -> None:
    """
    No key of a training item is kept back, and a held-out item has one that is.
    """
    assert not any(is_kept_back(key) for item in trained for key in item.keys)
    assert all(any(map(is_kept_back, item.keys)) for item in asked)


def test_every_family_is_trained() -> None:
    """
    Each has its share, also of the part in which finding is learnt. Changes of subject
    are trained by the longer conversations.
    """
    for shares in (SHARES, FINDING):
        assert set(shares) == set(FAMILIES) - {"changing"}
        assert all(share > 0 for share in shares.values())


def test_a_changed_subject_changes_no_answer() -> None:
    """
    A conversation that changes its subject is one after another, each as it is alone.
    """
    rng = random.Random("joined")
    parts = [held_out(family, rng) for family in ("sorting", "follow-ups", "facts")]

    whole = joined(parts)

    assert whole.turns == parts[0].turns + parts[1].turns + parts[2].turns
    assert whole.keys == parts[0].keys + parts[1].keys + parts[2].keys
    assert whole.is_kept_back


def test_nothing_asked_was_trained(trained: list[Item], asked: list[Item]) -> None:
    """
    Whatever the seeds, what must not be known of a held-out item was in no training.
    """
    keys = {key for item in trained for key in item.keys}
    seen = {conversation for item in trained for conversation in conversations(item)}

    known = [item for item in asked if keys.issuperset(item.keys)]
    repeated = [item for item in asked if seen.issuperset(conversations(item))]

    assert not known
    assert not repeated


def test_a_seed_always_draws_the_same_items() -> None:
    """
    The same seed gives the same items in the same order, another seed others.
    """
    once, again, other = (
        list(islice(training_items(seed), TRAINED)) for seed in (3, 3, 4)
    )

    assert once == again
    assert once != other


def test_a_seed_always_asks_the_same() -> None:
    """
    Held-out items, too, depend on the seed alone.
    """
    once, again, other = (
        [held_out("follow-ups", rng) for _ in range(QUESTIONED)]
        for rng in map(random.Random, (3, 3, 4))
    )

    assert once == again
    assert once != other


@pytest.mark.parametrize("side", [(), ("--held-out",)])
def test_the_command_line_shows_items_of_every_family(side: tuple[str, ...]) -> None:
    """
    Each item is one JSON object on a line of its own, the families one after another.
    """
    items = [
        json.loads(line)
        for line in run_command(*side, "--json", "--seed", "7", "--count", "2")
    ]

    assert [item["family"] for item in items] == [
        family for family in ASKED for _ in "12"
    ]
    assert all(set(item) == {"family", "turns"} for item in items)
    assert all(len(turn) == 2 for item in items for turn in item["turns"])


def test_the_command_line_asks_what_no_training_saw() -> None:
    """
    In a process of its own, too, a seed draws the same held-out items.
    """
    rng = random.Random(7)
    expected = [held_out("units", rng) for _ in range(5)]

    options = ["--held-out", "--json", "--seed", "7", "--count", "5"]
    items = map(json.loads, run_command(*options, "--family", "units"))

    assert [item["turns"] for item in items] == [
        [list(turn) for turn in item.turns] for item in expected
    ]


def test_no_two_facts_share_a_question() -> None:
    """
    A question has one answer, whatever its case and its last mark.
    """
    facts = tomllib.loads(FACTS.read_text())["facts"]

    counts = Counter(plain(q) for fact in facts for q in fact["questions"])

    assert [question for question, count in counts.items() if count > 1] == []


def test_facts_are_ascii() -> None:
    """
    What the model says of Tandem needs no letter that it never learnt.
    """
    assert FACTS.read_bytes().isascii()


def test_words_left_out_leave_the_fact() -> None:
    """
    A hurried question keeps its answer, and never becomes a question that is known.
    """
    facts = tomllib.loads(FACTS.read_text())["facts"]
    known = {plain(question) for fact in facts for question in fact["questions"]}
    rng = random.Random("hurried")
    calm = [FAMILIES["facts"](rng) for _ in range(5000)]

    pairs = [(item.turns[0], hurried(rng, item).turns[0]) for item in calm]

    changed = [short for (long, _), (short, _) in pairs if long != short]
    assert all(before == after for (_, before), (_, after) in pairs)
    assert len(changed) > len(calm) / 2
    assert known.isdisjoint(map(plain, changed))
