"""What the demo model learns and is asked: tasks whose answers a program can check.

    python tools/demo_data.py --count 3                    three items of each family
    python tools/demo_data.py --held-out --seed 7 --json   what `tandem eval-demo` asks

An item is a short conversation. Its key names what must not be known beforehand: the
operands of a sum, the word to reverse, the question about a fact. A hash of the key says
on which side of the split it lies, so nothing that is asked was ever trained, whatever
the seeds. The tasks are in
demo_tasks.py, demo_passage.py and demo_turns.py, the words in the TOML files.
"""

import argparse
import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping

import demo_passage as passage
import demo_tasks as tasks
import demo_turns as turns
from demo_item import Item

HELD_OUT_ONE_IN = 10
HURRIED = 0.35  # of the questions about facts that are trained

# A family's function, and its share of the training items. Shares follow difficulty.
FAMILIES: Mapping[str, tuple[Callable[[random.Random], Item], int]] = {
    "addition": (tasks.addition, 12),
    "subtraction": (tasks.subtraction, 12),
    "comparing": (tasks.comparing, 5),
    "sorting": (tasks.sorting, 8),
    "counting": (tasks.counting, 9),
    "reversing": (tasks.reversing, 6),
    "upper-casing": (tasks.upper_casing, 3),
    "weekdays": (tasks.weekdays, 5),
    "units": (tasks.units, 6),
    "copying": (tasks.copying, 8),
    "extracting": (passage.extracting, 10),
    "follow-ups": (turns.follow_ups, 10),
    "facts": (tasks.facts, 13),
    "unknown": (tasks.unknown, 2),
}


def is_held_out(key: str) -> bool:
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def held_out(family: str, rng: random.Random) -> Item:
    """One item of the family that no training has seen."""
    return _drawn(family, rng, is_asked=True)


def training_items(seed: int | str) -> Iterator[Item]:
    """Items of all families for ever, none of them held out."""
    rng = random.Random(seed)
    names = list(FAMILIES)
    shares = [share for _, share in FAMILIES.values()]
    while True:
        family = rng.choices(names, shares)[0]
        item = _drawn(family, rng, is_asked=False)
        if family == "facts" and rng.random() < HURRIED:
            item = tasks.hurried(rng, item)
        yield item


def _drawn(family: str, rng: random.Random, *, is_asked: bool) -> Item:
    make, _ = FAMILIES[family]
    while True:
        item = make(rng)
        if any(map(is_held_out, item.keys)) == is_asked:
            return item


def main() -> None:
    parser = argparse.ArgumentParser(description="Show items of the demo data.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=50, help="items per family")
    parser.add_argument("--family", choices=FAMILIES, help="only this one")
    parser.add_argument("--held-out", action="store_true", help="never-trained items")
    parser.add_argument("--json", action="store_true", help="one object per line")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    for family in [options.family] if options.family else FAMILIES:
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
