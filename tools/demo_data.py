"""What the demo model learns and is asked: tasks whose answers a program can check.

    python tools/demo_data.py --count 3                    three items of each family
    python tools/demo_data.py --held-out --seed 7 --json   what `tandem eval-demo` asks

An item is a short conversation. Its key names what must not be known beforehand: the
operands of a sum, the word to reverse, the wording of a question about a fact. A hash of
the key says on which side of the split it lies, so nothing that is asked was ever trained,
whatever the seeds. The tasks are in demo_tasks.py, demo_passage.py and demo_turns.py, the
words in the TOML files.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import demo_passage as passage
import demo_tasks as tasks
import demo_turns as turns
from demo_item import Item, item

HURRIED = 0.35  # of the questions about facts that are trained


def changing(rng: random.Random) -> Item:
    """A conversation that changes its subject."""
    return _several(rng, 2)


def wandering(rng: random.Random) -> Item:
    """The same, and perhaps once or twice more."""
    return _several(rng, rng.randint(2, 4))


def _several(rng: random.Random, count: int) -> Item:
    names = rng.choices(list(ALONE), list(ALONE.values()), k=count)
    return joined([FAMILIES[name](rng) for name in names])


def joined(parts: Sequence[Item]) -> Item:
    """One conversation of several, one after the other."""
    return item(
        tuple(key for part in parts for key in part.keys),
        tuple(turn for part in parts for turn in part.turns),
    )


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
    "changing": changing,
    # For training alone: the same again and again.
    "wandering": wandering,
    "examining": passage.examining,
    "identifying": passage.identifying,
    "restating": passage.restating,
}
TRAINED_ONLY = {"wandering", "examining", "identifying", "restating"}
ASKED = tuple(name for name in FAMILIES if name not in TRAINED_ONLY)

# Shares of the trained items.
ALONE: Mapping[str, int] = {
    "addition": 10,
    "subtraction": 11,
    "comparing": 4,
    "sorting": 7,
    "counting": 9,
    "reversing": 4,
    "upper-casing": 3,
    "weekdays": 5,
    "units": 4,
    "copying": 8,
    "extracting": 9,
    "follow-ups": 9,
    "facts": 14,
    "unknown": 2,
}
# At the beginning: copying and finding are learnt from many repetitions.
FINDING: Mapping[str, int] = {
    **ALONE, "wandering": 30, "examining": 18, "identifying": 12, "restating": 8
}  # fmt: skip
SHARES: Mapping[str, int] = {
    **ALONE, "wandering": 30, "examining": 7, "identifying": 4, "restating": 1
}  # fmt: skip


def held_out(family: str, rng: random.Random) -> Item:
    """One item of the family that no training has seen."""
    return _drawn(family, rng, is_asked=True)


def training_items(
    seed: int | str, shares: Mapping[str, int] = SHARES
) -> Iterator[Item]:
    """Items of all families for ever, none of them held out."""
    rng = random.Random(seed)
    while True:
        family = rng.choices(list(shares), list(shares.values()))[0]
        drawn = _drawn(family, rng, is_asked=False)
        if family == "facts" and rng.random() < HURRIED:
            drawn = tasks.hurried(rng, drawn)
        yield drawn


def _drawn(family: str, rng: random.Random, *, is_asked: bool) -> Item:
    while True:
        drawn = FAMILIES[family](rng)
        if drawn.is_kept_back == is_asked:
            return drawn


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
