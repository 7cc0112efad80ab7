"""The demo model's answers, each found again by a program that only reads the question."""

import calendar
import random
import re
import tomllib
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from demo_data import ASKED, FAMILIES

TOOLS = Path(__file__).parents[2] / "tools"
ITEMS = 300  # of each family
MONDAY = date(2024, 1, 1)
DAY = "|".join(calendar.day_name)

# fmt: off
SIZES = {  # in milliseconds, months, inches, grams, millilitres, cents or millimetres
    "milliseconds": 1, "seconds": 1000, "minutes": 60_000, "hours": 3_600_000,
    "days": 86_400_000, "weeks": 604_800_000, "months": 1, "years": 12,
    "inches": 1, "feet": 12, "grams": 1, "kilograms": 1000,
    "millilitres": 1, "litres": 1000, "cents": 1, "euros": 100,
    "millimetres": 1, "centimetres": 10, "metres": 1000, "kilometres": 1_000_000,
}
# fmt: on
ORDINALS = ("first", "second", "third", "fourth", "fifth")
STATEMENT = re.compile(r"([A-Z][a-z]+) (visits|likes|eats|teaches) ([^.?\n]+)\.")
# What is asked of a person, by the words of the question; the first that fits counts.
VERBS = {
    "hobby|likes?": "likes",
    "visits?": "visits",
    "eats?": "eats",
    "teach|teaches": "teaches",
}


CONVERSATIONS = {"follow-ups", "changing"}


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def quoted(text: str) -> list[str]:
    return re.findall(r'"(\w+)"', text)


def says(words: str, text: str) -> bool:
    """Whether the text has one of these words (a regular expression), unquoted."""
    return bool(re.search(rf"\b({words})\b", re.sub(r'"\w+"', "", text), re.IGNORECASE))


def addition(question: str) -> str:
    a, b = numbers(question)
    return f"{a} + {b} = {a + b}"


def subtraction(question: str) -> str:
    a, b = numbers(question)
    if says("from", question):  # "Subtract 3 from 5", but "Take 3 away from 5", too
        a, b = b, a
    return f"{a} - {b} = {a - b}"


def comparing(question: str) -> str:
    a, b = numbers(question)
    low, high = sorted((a, b))
    if claim := re.search(r"\bis \d+ (larger|smaller) than", question, re.IGNORECASE):
        actual = "larger" if a == high else "smaller"
        verdict = "yes" if claim[1] == actual else "no"
        return f"{a} is {actual} than {b}, so {verdict}."
    if says("larger|bigger|greater", question):
        return f"{high} is larger than {low}."
    assert says("smaller|less|lesser", question)
    return f"{low} is smaller than {high}."


def sorting(question: str) -> str:
    is_falling = says("descending|largest first|high to low|from largest", question)
    return in_order(numbers(question), is_falling=is_falling)


def in_order(drawn: list[int], *, is_falling: bool) -> str:
    ordered = sorted(drawn, reverse=is_falling)
    assert all((a > b) == is_falling for a, b in pairwise(ordered))
    return ", ".join(map(str, ordered))


def counting(question: str) -> str:
    *letter, spelled = sorted(quoted(question), key=len)
    counted = set(letter or spelled)  # of every letter where none is named

    def among(text: str) -> int:
        return sum(text.count(c) for c in counted)

    marks = [
        f"{c}{among(spelled[:end])}" if c in counted else c
        for end, c in enumerate(spelled, 1)
    ]
    return f"{' '.join(marks)}, so {among(spelled)}."


def reversing(question: str) -> str:
    (spelled,) = quoted(question)
    return f'"{"".join(reversed(spelled))}"'


def upper_casing(question: str) -> str:
    (spelled,) = quoted(question)
    if says("small|lower", question):
        return f'"{spelled.lower()}"'
    assert says("capitals?|upper", question)
    return f'"{spelled.upper()}"'


def weekdays(question: str) -> str:
    day, *until = re.findall(DAY, question)
    if until:
        apart = next(n for n in range(1, 8) if moved(day, n) == until[0])
        return f"{counted_off(day, apart, 1)}. It is {several(apart, 'day')}."
    (n,) = numbers(question)
    return after(day, n, -1 if says("before|ago", question) else 1)


def after(day: str, n: int, sign: int) -> str:
    weeks = timedelta(days=n) // timedelta(weeks=1)
    rest = n - 7 * weeks
    steps = []
    if weeks:
        steps += [f"{n} days are {several(weeks, 'week')} and {several(rest, 'day')}"]
    if rest:
        steps += [counted_off(day, rest, sign)]
    return f"{': '.join(steps)}. It is {moved(day, sign * n)}."


def counted_off(day: str, n: int, sign: int) -> str:
    return ", ".join(f"{moved(day, sign * step)} {step}" for step in range(1, n + 1))


def moved(day: str, n: int) -> str:
    start = MONDAY + timedelta(days=list(calendar.day_name).index(day))
    return calendar.day_name[(start + timedelta(days=n)).weekday()]


def several(n: int, unit: str) -> str:
    return f"{n} {unit}" + "s" * (n != 1)


def units(question: str) -> str:
    ((n, unit),) = re.findall(r"(\d+) (\w+)", question)
    (other,) = {w for w in re.findall(r"[a-z]+", question) if w in SIZES} - {unit}
    result, rest = divmod(int(n) * SIZES[unit], SIZES[other])
    assert rest == 0
    return f"{n} {unit} are {result} {other}."


def copying(question: str) -> str:
    instruction, text = question.split(": ", 1)
    assert says("repeat|copy|say|write|echo", instruction)
    assert question.endswith(text)
    return text


def extracting(question: str) -> str:
    if settings := dict(re.findall(r"(\w+) = (\d+)", question)):
        rest = re.sub(r"\w+ = \d+", "", question)
        (key,) = set(re.findall(r"\w+", rest)) & set(settings)
        return f"{key} = {settings[key]}"
    if nth := re.search(rf"({'|'.join(ORDINALS)}) sentence", question):
        sentences = re.findall(r"The \w+ \w+ \w+ the \w+ \w+\.", question)
        return sentences[ORDINALS.index(nth[1])]
    return stated(question, STATEMENT.sub("", question))


def stated(passage: str, question: str) -> str:
    """The one statement in the passage that answers a question about a person."""
    wanted = next(verb for words, verb in VERBS.items() if says(words, question))
    (answer,) = (
        f"{name} {verb} {value}."
        for name, verb, value in STATEMENT.findall(passage)
        if verb == wanted and says(f"{name}|{value}", question)
    )
    assert answer in passage
    return answer


def plain(question: str) -> str:
    return question.rstrip(".?").lower()


FACTS = {
    plain(question): fact["answer"]
    for fact in tomllib.loads((TOOLS / "demo_facts.toml").read_text())["facts"]
    for question in fact["questions"]
}


def facts(question: str) -> str:
    return FACTS[max(filter(plain(question).endswith, FACTS), key=len)]


def unknown(question: str) -> str:
    assert plain(question) not in FACTS
    return "I do not know that. Ask me to add, sort, spell or convert, or about Tandem."


def follow_ups(first: str, *others: str) -> Iterator[str]:
    if day := re.search(DAY, first):
        (n,), (more,) = numbers(first), numbers(*others)
        yield after(day[0], n, 1)
        yield after(moved(day[0], n), more, 1)
    elif STATEMENT.search(first):
        yield from told_of_people(first, *others)
    elif quoted(first):
        assert says("capital|upper", *others)
        yield reversing(first)
        yield reversing(first).upper()
    elif len(numbers(first)) > 2:
        assert says("largest to smallest|descending", *others)
        yield in_order(numbers(first), is_falling=False)
        yield in_order(numbers(first), is_falling=True)
    else:
        yield from sums(first, *others)


def examined(first: str, *others: str) -> Iterator[str]:
    """Question after question about the text with which the first one begins."""
    passage, question = first.split("\n\n")
    for each in (question, *others):
        yield extracting(f"{passage} {each}")


def told_of_people(first: str, *others: str) -> Iterator[str]:
    question = STATEMENT.sub("", first)
    yield (answer := stated(first, question))
    for other in others:
        if another := re.fullmatch(r"And (\w+)\?", other):
            question = question.replace(answer.split()[0], another[1])
        else:
            question = other
        yield (answer := stated(first, question))


def sums(first: str, *others: str) -> Iterator[str]:
    yield addition(first)
    value = sum(numbers(first))
    for question in others:
        (n,) = numbers(question)
        is_sum = says("add|plus", question)
        assert is_sum != says("subtract|minus", question)
        made = value + n if is_sum else value - n
        yield f"{value} {'+' if is_sum else '-'} {n} = {made}"
        value = made


ANSWERS: dict[str, Callable[[str], str]] = {
    "addition": addition,
    "subtraction": subtraction,
    "comparing": comparing,
    "sorting": sorting,
    "counting": counting,
    "reversing": reversing,
    "upper-casing": upper_casing,
    "weekdays": weekdays,
    "units": units,
    "copying": copying,
    "extracting": extracting,
    "facts": facts,
    "unknown": unknown,
}


@pytest.mark.parametrize("family", sorted({*ASKED} - CONVERSATIONS))
def test_a_single_answer_is_right(family: str) -> None:
    """
    Another program gives the same answer to each question, to the letter.
    """
    make = FAMILIES[family]
    rng = random.Random(family)

    turns = [turn for _ in range(ITEMS) for turn in make(rng).turns]

    assert len(turns) == ITEMS
    assert turns == [(question, ANSWERS[family](question)) for question, _ in turns]


@pytest.mark.parametrize(
    ("family", "answered"), [("follow-ups", follow_ups), ("examining", examined)]
)
def test_the_answers_of_a_conversation_are_right(
    family: str, answered: Callable[..., Iterator[str]]
) -> None:
    """
    Each answer follows from the questions so far, whatever was answered before.
    """
    make = FAMILIES[family]
    rng = random.Random(family)

    for _ in range(ITEMS):
        questions, answers = zip(*make(rng).turns, strict=True)

        assert answers == tuple(answered(*questions))
