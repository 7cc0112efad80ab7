"""The demo data's single tasks: a random question of each family with its one answer.

Answers that need several steps show them in the order in which they are found, so that
each token follows from those before it.
"""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import replace

from demo_item import (
    HERE,
    PHRASINGS,
    WORDS,
    Item,
    asked,
    one,
    phrased,
    with_article,
    word,
)
from demo_passage import sentence

FACTS = tomllib.loads((HERE / "demo_facts.toml").read_text())["facts"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
# fmt: off
GOODS = ["apples", "coins", "books", "stamps", "marbles", "pens", "eggs", "cards",
         "shells", "stones"]
# fmt: on
DO_NOT_KNOW = (
    "I do not know that. Ask me to add, sort, spell or convert, or about Tandem."
)

# (large unit, small unit, how many of it, largest number)
UNITS = (
    ("kilometres", "metres", 1000, 99),
    ("kilograms", "grams", 1000, 99),
    ("litres", "millilitres", 1000, 99),
    ("seconds", "milliseconds", 1000, 99),
    ("metres", "centimetres", 100, 99),
    ("euros", "cents", 100, 99),
    ("centimetres", "millimetres", 10, 99),
    ("hours", "minutes", 60, 20),
    ("minutes", "seconds", 60, 20),
    ("weeks", "days", 7, 20),
    ("days", "hours", 24, 10),
    ("years", "months", 12, 20),
    ("feet", "inches", 12, 20),
)


def sum_of(a: int, b: int) -> str:
    return f"{a} + {b} = {a + b}"


def difference_of(a: int, b: int) -> str:
    return f"{a} - {b} = {a - b}"


def sum_key(a: int, b: int) -> str:
    """Who knows a + b knows b + a."""
    return f"{min(a, b)} + {max(a, b)}"


def number(rng: random.Random) -> int:
    return rng.randrange(10 if rng.random() < 0.15 else 100)


def with_goods(rng: random.Random, kind: str, a: int, b: int) -> str:
    """A question about two numbers, perhaps of things."""
    phrasing = rng.choice(PHRASINGS[kind])
    return phrasing.format(a=a, b=b, goods=rng.choice(GOODS))


def addition(rng: random.Random) -> Item:
    a, b = number(rng), number(rng)
    question = with_goods(rng, "add", a, b)
    return one(sum_key(a, b), asked(rng, question), sum_of(a, b))


def subtraction(rng: random.Random) -> Item:
    b, a = sorted((number(rng), number(rng)))
    question = with_goods(rng, "subtract", a, b)
    return one(f"{a} - {b}", asked(rng, question), difference_of(a, b))


def comparing(rng: random.Random) -> Item:
    a, b = number(rng), number(rng)
    if rng.random() < 0.3:  # neighbours are the hard ones
        b = max(0, a + rng.choice((-10, -2, -1, 1, 2, 10)))
    if a == b:
        b += 1
    key = f"{min(a, b)} <> {max(a, b)}"
    if rng.random() < 0.4:
        size, holds = rng.choice((("larger", a > b), ("smaller", a < b)))
        question = f"Is {a} {size} than {b}?"
        actual = "larger" if a > b else "smaller"
        verdict = "yes" if holds else "no"
        return one(
            key, asked(rng, question), f"{a} is {actual} than {b}, so {verdict}."
        )
    if rng.random() < 0.5:
        question = phrased(rng, "larger", a=a, b=b)
        answer = f"{max(a, b)} is larger than {min(a, b)}."
    else:
        question = phrased(rng, "smaller", a=a, b=b)
        answer = f"{min(a, b)} is smaller than {max(a, b)}."
    return one(key, asked(rng, question), answer)


def sorting(rng: random.Random) -> Item:
    drawn = rng.sample(range(100), rng.randint(3, 6))
    is_descending = rng.random() < 0.35
    kind = "descending" if is_descending else "ascending"
    question = phrased(rng, kind, list=listed(drawn))
    answer = listed(sorted(drawn, reverse=is_descending))
    return one(f"sort {listed(drawn)}", asked(rng, question), answer)


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def counting(rng: random.Random) -> Item:
    spelled = word(rng, 3, 11)
    if rng.random() < 0.25:
        question = phrased(rng, "length", word=spelled)
        return one(f"length {spelled}", asked(rng, question), counted(spelled, ""))
    repeated = [c for c in spelled if spelled.count(c) > 1]
    letter = rng.choice(repeated if repeated and rng.random() < 0.5 else spelled)
    if rng.random() < 0.1:
        letter = rng.choice("aeiourstlnm")
    question = phrased(rng, "count", letter=letter, word=spelled)
    return one(f"{letter} in {spelled}", asked(rng, question), counted(spelled, letter))


def counted(spelled: str, letter: str) -> str:
    """The letters one by one, those that count with their number; all for no letter."""
    seen = 0
    marks = []
    for c in spelled:
        is_counted = c == letter or not letter
        seen += is_counted
        marks.append(f"{c}{seen}" if is_counted else c)
    return f"{' '.join(marks)}, so {seen}."


def reversing(rng: random.Random) -> Item:
    spelled = word(rng, 3, 8)
    question = phrased(rng, "reverse", word=spelled)
    return one(f"reverse {spelled}", asked(rng, question), f'"{spelled[::-1]}"')


def upper_casing(rng: random.Random) -> Item:
    spelled = word(rng, 3, 10)
    key = f"case {spelled}"
    if rng.random() < 0.2:
        question = phrased(rng, "lower", word=spelled.upper())
        return one(key, asked(rng, question), f'"{spelled}"')
    question = phrased(rng, "upper", word=spelled)
    return one(key, asked(rng, question), f'"{spelled.upper()}"')


def weekdays(rng: random.Random) -> Item:
    day = rng.randrange(7)
    if rng.random() < 0.25:
        days = rng.randrange(1, 7)
        other = DAYS[(day + days) % 7]
        question = phrased(rng, "between", a=DAYS[day], b=other)
        answer = f"{stepped(day, days, 1)}. It is {plural(days, 'day')}."
        return one(question, asked(rng, question), answer)
    n = rng.randint(2, 30)
    sign, kind = rng.choice(((1, "after"), (-1, "before")))
    question = phrased(rng, kind, n=n, day=DAYS[day])
    return one(f"{n * sign} {day}", asked(rng, question), shifted(day, n, sign))


def shifted(day: int, n: int, sign: int) -> str:
    """Whole weeks change nothing; the days that are left are counted."""
    weeks, rest = divmod(n, 7)
    ends = f"It is {DAYS[(day + sign * n) % 7]}."
    if weeks == 0:
        return f"{stepped(day, rest, sign)}. {ends}"
    left = f"{n} days are {plural(weeks, 'week')} and {plural(rest, 'day')}"
    return f"{left}: {stepped(day, rest, sign)}. {ends}" if rest else f"{left}. {ends}"


def stepped(day: int, days: int, sign: int) -> str:
    steps = range(1, days + 1)
    return ", ".join(f"{DAYS[(day + sign * step) % 7]} {step}" for step in steps)


def plural(n: int, unit: str) -> str:
    return f"{n} {unit}" if n == 1 else f"{n} {unit}s"


def units(rng: random.Random) -> Item:
    large, small, factor, most = rng.choice(UNITS)
    n = rng.randint(2, most)
    phrasing = rng.choice(PHRASINGS["convert"])
    count, unit, result, to = n, large, n * factor, small
    if rng.random() < 0.3:
        count, unit, result, to = result, to, count, unit
    question = phrasing.format(n=count, unit=unit, to=to)
    # A table is learnt by heart: of its few entries only the phrasing can be new.
    key = question if most <= 20 else f"{n} {large} {small}"
    return one(key, asked(rng, question), f"{count} {unit} are {result} {to}.")


def copying(rng: random.Random) -> Item:
    draw = rng.random()
    if draw < 0.4:
        text = " ".join(rng.choice(WORDS["nouns"]) for _ in range(rng.randint(2, 12)))
    elif draw < 0.6:
        text = listed([rng.randrange(1000) for _ in range(rng.randint(2, 8))])
    else:
        most = 3 if rng.random() < 0.8 else 12
        text = " ".join(sentence(rng) for _ in range(rng.randint(1, most)))
    return one(f"copy {text}", phrased(rng, "copy", text=text), text)


def facts(rng: random.Random) -> Item:
    """What is known cannot be kept back, but how it is asked can."""
    fact = rng.choice(FACTS)
    wording = rng.choice(fact["questions"])
    if rng.random() < 0.3:
        wording = phrased(rng, "fact_openings") + wording
    return one(wording, asked(rng, wording), fact["answer"])


def hurried(rng: random.Random, item: Item) -> Item:
    """The same with words left out of the question: what is left still means it.

    Unless what is left is another fact's question, which may be held out.
    """
    ((question, answer),) = item.turns
    left = " ".join(word for word in question.split() if rng.random() < 0.8)
    if " " not in left or any(_plain(left).endswith(known) for known in QUESTIONS):
        return item
    return replace(item, turns=((left, answer),))


def _plain(question: str) -> str:
    return question.lower().rstrip("?.")


QUESTIONS = {_plain(question) for fact in FACTS for question in fact["questions"]}


def unknown(rng: random.Random) -> Item:
    subjects = {
        "city": rng.choice(WORDS["cities"]),
        "name": rng.choice(WORDS["names"]),
        "noun": rng.choice(WORDS["nouns"]),
        "animal": with_article(rng.choice(WORDS["animals"])),
        "food": rng.choice(WORDS["foods"]),
        "object": rng.choice(WORDS["objects"]),
        "hobby": rng.choice(WORDS["hobbies"]),
    }
    question = phrased(rng, "unknown", **subjects)
    return one(question, asked(rng, question), DO_NOT_KNOW)
