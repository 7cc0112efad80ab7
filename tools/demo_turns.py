"""The demo data's conversations: each question builds on the answer before it."""

import random

import demo_tasks as tasks
from demo_item import Item, asked, item, phrased, word
from demo_passage import ATTRIBUTES, about, people, told

LEAST, MOST = 0, 99


def follow_ups(rng: random.Random) -> Item:
    make = rng.choices(
        (_arithmetic, _spelling, _passage, _order, _calendar), (35, 15, 30, 10, 10)
    )[0]
    return make(rng)


def _arithmetic(rng: random.Random) -> Item:
    a = rng.randint(LEAST, MOST)
    b = rng.randint(LEAST, MOST - a)
    question = tasks.with_goods(rng, "add", a, b)
    keys, turns = [tasks.sum_key(a, b)], [(asked(rng, question), tasks.sum_of(a, b))]
    value = a + b
    for _ in range(rng.randint(1, 3)):
        key, question, answer, value = _next_sum(rng, value)
        keys.append(key)
        turns.append((asked(rng, question), answer))
    return item(tuple(keys), tuple(turns))


def _next_sum(rng: random.Random, value: int) -> tuple[str, str, str, int]:
    """What to do to the value next: key, question, answer, and the new value."""
    n = rng.randint(1, 20)
    can_add, can_take = value + n <= MOST, value - n >= LEAST
    if can_add and (rng.random() < 0.5 or not can_take):
        question = phrased(rng, "add_to_that", n=n)
        return tasks.sum_key(value, n), question, tasks.sum_of(value, n), value + n
    question = phrased(rng, "take_from_that", n=n)
    return f"{value} - {n}", question, tasks.difference_of(value, n), value - n


def _spelling(rng: random.Random) -> Item:
    spelled = word(rng, 3, 7)
    first = phrased(rng, "reverse", word=spelled)
    turns = [
        (asked(rng, first), f'"{spelled[::-1]}"'),
        (asked(rng, phrased(rng, "in_capitals")), f'"{spelled[::-1].upper()}"'),
    ]
    return item((f"reverse {spelled}",), tuple(turns))


def _passage(rng: random.Random) -> Item:
    crowd = people(rng)
    person, attribute = rng.choice(crowd), rng.choice(ATTRIBUTES)
    first = f"{told(rng, crowd)}\n\n{about(rng, person, attribute)}"
    turns = [(first, person.says(attribute))]
    for _ in range(rng.randint(1, 3)):
        other = rng.choice(crowd)
        if other is not person and rng.random() < 0.5:
            question = f"And {other.name}?"
        else:
            attribute = rng.choice(ATTRIBUTES)
            question = about(rng, other, attribute)
        person = other
        turns.append((question, person.says(attribute)))
    return item((first,), tuple(turns))


def _order(rng: random.Random) -> Item:
    drawn = rng.sample(range(100), rng.randint(3, 5))
    first = phrased(rng, "ascending", list=tasks.listed(drawn))
    ascending = sorted(drawn)
    turns = [
        (asked(rng, first), tasks.listed(ascending)),
        (asked(rng, phrased(rng, "other_way")), tasks.listed(ascending[::-1])),
    ]
    return item((f"sort {tasks.listed(drawn)}",), tuple(turns))


def _calendar(rng: random.Random) -> Item:
    day, n, more = rng.randrange(7), rng.randint(2, 30), rng.randint(2, 6)
    first = phrased(rng, "after", n=n, day=tasks.DAYS[day])
    then = (day + n) % 7
    turns = [
        (asked(rng, first), tasks.shifted(day, n, 1)),
        (phrased(rng, "later", n=more), tasks.shifted(then, more, 1)),
    ]
    return item((f"{n} {day}", f"{more} {then}"), tuple(turns))
