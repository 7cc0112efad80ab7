"""What the demo model learns and is asked: tasks whose answers a program can check.

    python tools/demo_data.py --count 3                    three items of each family
    python tools/demo_data.py --held-out --seed 7 --json   what `tandem eval-demo` asks

An item is a short conversation. Its key names what must not be known beforehand: the
operands of a sum, the word to reverse, the wording of a question about a fact. A hash of
the key says on which side of the split it lies, so nothing that is asked was ever trained,
whatever the seeds. The tasks are in
demo_tasks.py, demo_passage.py and demo_turns.py, the words in the TOML files.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import demo_passage as passage
import demo_tasks as tasks
import demo_turns as turns
from demo_item import Item

HURRIED = 0.35  # of the questions about facts that are trained

FAMILIES: Mapping[str, Callable[[random.Random], Item]] = {
    "addition": tasks.addition,
    "subtraction": tasks.subtraction,
    "comparing": tasks.comparing,
    "sorting": tasks.sorting,
    "counting": tasks.counting,
    "reversing": tasks.reversing,
    "upper-casing": tasks.upper_casing,
    "weekdays": tasks.weekdays,
    "units": tasks.units,
    "copying": tasks.copying,
    "extracting": passage.extracting,
    "follow-ups": turns.follow_ups,
    "facts": tasks.facts,
    "unknown": tasks.unknown,
    "examining": passage.examining,  # extracting again and again, for training alone
}
ASKED = tuple(name for name in FAMILIES if name != "examining")


@dataclass(frozen=True, slots=True)
class Course:
    """A part of the training: each family's share of the items, in their order."""

    shares: Sequence[int]
    has_late: bool  # questions that are kept back before


# First a little of everything; then more of what is slow to come: finding and copying
# are learnt from many repetitions.
FIRST = Course((12, 12, 5, 8, 9, 6, 3, 5, 6, 8, 10, 10, 13, 2, 0), has_late=False)
SECOND = Course((8, 9, 4, 9, 10, 4, 3, 5, 4, 13, 5, 9, 11, 1, 12), has_late=False)
THIRD = replace(SECOND, has_late=True)
LAST = Course((6, 8, 4, 6, 6, 2, 2, 2, 4, 4, 10, 13, 12, 1, 30), has_late=True)


def held_out(family: str, rng: random.Random) -> Item:
    """One item of the family that no training has seen."""
    return _drawn(family, rng, is_asked=True)


def training_items(seed: int | str, course: Course = FIRST) -> Iterator[Item]:
    """Items of all families for ever, none of them held out."""
    rng = random.Random(seed)
    names = list(FAMILIES)
    while True:
        family = rng.choices(names, course.shares)[0]
        item = _drawn(family, rng, is_asked=False)
        while item.is_late and not course.has_late:
            item = _drawn(family, rng, is_asked=False)
        if family == "facts" and rng.random() < HURRIED:
            item = tasks.hurried(rng, item)
        yield item


def _drawn(family: str, rng: random.Random, *, is_asked: bool) -> Item:
    while True:
        item = FAMILIES[family](rng)
        if item.is_kept_back == is_asked:
            return item


def main() -> None:
    parser = argparse.ArgumentParser(description="Show items of the demo data.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=50, help="items per family")
    parser.add_argument("--family", choices=ASKED, help="only this one")
    parser.add_argument("--held-out", action="store_true", help="never-trained items")
    parser.add_argument("--json", action="store_true", help="one object per line")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    for family in [options.family] if options.family else ASKED:
        for _ in range(options.count):
            item = _drawn(family, rng, is_asked=options.held_out)
            print(_as_json(family, item) if options.json else _as_text(family, item))


def _as_json(family: str, item: Item) -> str:
    return json.dumps({"family": family, "turns": item.turns})


def _as_text(family: str, item: Item) -> str:
    lines = [f"-- {family}"]
    for question, answer in item.turns:
        lines += [f"Q: {question}", f"A: {answer}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
