"""The demo data's passages, from a few lines to a thousand tokens, and what is asked of
them: the long prompts on which a prefix cache and n-gram drafting show.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demo_item import WORDS, Item, asked, item, one, phrased

# A text, and what draws a question about it with its answer.
Passage = tuple[str, Callable[[], tuple[str, str]]]

ORDINALS = ("first", "second", "third", "fourth", "fifth")
ATTRIBUTES = ("city", "hobby", "food", "subject")
# A value is always the second word after its name: what a small model can learn to find.
STATED = {
    "city": "{name} visits {value}.",
    "hobby": "{name} likes {value}.",
    "food": "{name} eats {value}.",
    "subject": "{name} teaches {value}.",
}


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    city: str
    hobby: str
    food: str
    subject: str

    def says(self, attribute: str) -> str:
        value = getattr(self, attribute)
        return STATED[attribute].format(name=self.name, value=value)


def extracting(rng: random.Random) -> Item:
    text, ask = _passage(rng, (60, 25, 15))
    question, answer = ask()
    placed = phrased(rng, "placed", passage=text, question=question)
    return one(placed, placed, answer)


def examining(rng: random.Random) -> Item:
    """One passage, and question after question about it; oftener of what is hard."""
    return _examined(rng, *_passage(rng, (60, 10, 30)))


def identifying(rng: random.Random) -> Item:
    """Who is it, again and again: harder to find than what somebody does."""
    crowd = people(rng)
    known = rng.sample(ATTRIBUTES, rng.choice((1, 1, 2, 4)))
    text = told(rng, crowd, known)
    return _examined(
        rng, text, lambda: _asked_who(rng, rng.choice(crowd), rng.choice(known))
    )


def _examined(
    rng: random.Random, text: str, ask: Callable[[], tuple[str, str]]
) -> Item:
    first, *more = (ask() for _ in range(rng.randint(4, 10)))
    question = f"{text}\n\n{first[0]}"
    return item((question,), ((question, first[1]), *more))


def restating(rng: random.Random) -> Item:
    """All that a text says again, in another order and more than once."""
    crowd = people(rng)
    known = rng.sample(ATTRIBUTES, rng.choice((1, 1, 2, 4)))
    statements = [person.says(a) for person in crowd for a in known]
    orders = [rng.sample(statements, len(statements)) for _ in range(3)]
    first, *others = (" ".join(order) for order in orders)
    return one(first, f"{first}\n\nSay that again, in any order.", " ".join(others))


def _passage(rng: random.Random, kinds: Sequence[int]) -> Passage:
    """With the shares of texts about people, settings and sentences."""
    return rng.choices((_about_people, _settings, _sentences), kinds)[0](rng)


def _about_people(rng: random.Random) -> Passage:
    crowd = people(rng)
    known = rng.sample(ATTRIBUTES, rng.choice((1, 1, 2, 4, 4)))
    return told(rng, crowd, known), lambda: _asked_about(rng, crowd, known)


def _asked_about(
    rng: random.Random, crowd: list[Person], known: Sequence[str]
) -> tuple[str, str]:
    """A question about one of them, or for who it is."""
    person, attribute = rng.choice(crowd), rng.choice(known)
    if rng.random() < 0.3:
        return _asked_who(rng, person, attribute)
    return about(rng, person, attribute), person.says(attribute)


def _asked_who(rng: random.Random, person: Person, attribute: str) -> tuple[str, str]:
    value = getattr(person, attribute)
    return phrased(rng, f"who_{attribute}", value=value), person.says(attribute)


def people(rng: random.Random) -> list[Person]:
    """Two to thirty people of whom no two share anything; mostly few."""
    most = rng.choices((2, 3, 6, 12, 30), (20, 30, 30, 16, 4))[0]
    count = rng.randint(2, most)
    kinds = ("names", "cities", "hobbies", "dishes", "subjects")
    columns = (rng.sample(WORDS[kind], count) for kind in kinds)
    return [Person(*row) for row in zip(*columns, strict=True)]


def told(
    rng: random.Random, crowd: list[Person], known: Sequence[str] = ATTRIBUTES
) -> str:
    """All that is known of them, person by person or well mixed."""
    lines = [[person.says(attribute) for attribute in known] for person in crowd]
    for of_one in lines:
        rng.shuffle(of_one)
    sentences = [line for of_one in lines for line in of_one]
    if rng.random() < 0.2:
        rng.shuffle(sentences)
    return " ".join(sentences)


def about(rng: random.Random, person: Person, attribute: str) -> str:
    return phrased(rng, f"about_{attribute}", name=person.name)


def _settings(rng: random.Random) -> Passage:
    most = rng.choices((3, 8, 30), (50, 35, 15))[0]
    keys = rng.sample(WORDS["keys"], rng.randint(2, most))
    lines = {key: f"{key} = {rng.randrange(1000)}" for key in keys}

    def ask() -> tuple[str, str]:
        wanted = rng.choice(keys)
        return phrased(rng, "value_of", key=wanted), lines[wanted]

    return rng.choice(("\n", ", ", "; ")).join(lines.values()), ask


def _sentences(rng: random.Random) -> Passage:
    sentences = [sentence(rng) for _ in range(rng.randint(2, 5))]

    def ask() -> tuple[str, str]:
        n = rng.randrange(len(sentences))
        return asked(rng, f"What is the {ORDINALS[n]} sentence?"), sentences[n]

    return " ".join(sentences), ask


def sentence(rng: random.Random) -> str:
    adjective = rng.choice(WORDS["adjectives"])
    animal, thing = rng.choice(WORDS["animals"]), rng.choice(WORDS["objects"])
    verb, colour = rng.choice(WORDS["verbs"]), rng.choice(WORDS["colours"])
    return f"The {adjective} {animal} {verb} the {colour} {thing}."
