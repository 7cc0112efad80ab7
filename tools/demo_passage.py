"""The demo data's passages, from a few lines to a thousand tokens, and what is asked of
them: the long prompts on which a prefix cache and n-gram drafting show.
"""

import random
from dataclasses import dataclass

from demo_item import WORDS, Item, asked, item, one, phrased, with_article

ORDINALS = ("first", "second", "third", "fourth", "fifth")
ATTRIBUTES = ("city", "job", "thing", "hobby")
STATED = {
    "city": "{name} lives in {value}.",
    "job": "{name} is {value}.",
    "thing": "{name} owns {value}.",
    "hobby": "{name} likes {value}.",
}


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    city: str
    job: str
    thing: str
    hobby: str

    def says(self, attribute: str) -> str:
        value = getattr(self, attribute)
        return STATED[attribute].format(name=self.name, value=value)


def extracting(rng: random.Random) -> Item:
    draw = rng.random()
    if draw < 0.6:
        return _about_people(rng)
    return _about_settings(rng) if draw < 0.85 else _nth_sentence(rng)


def examining(rng: random.Random) -> Item:
    """One passage, and question after question about it."""
    crowd = people(rng)
    first, *more = (_asked_about(rng, crowd) for _ in range(rng.randint(4, 8)))
    question = f"{told(rng, crowd)}\n\n{first[0]}"
    return item((question,), ((question, first[1]), *more))


def _about_people(rng: random.Random) -> Item:
    crowd = people(rng)
    question, answer = _asked_about(rng, crowd)
    return _placed(rng, told(rng, crowd), question, answer)


def _asked_about(rng: random.Random, crowd: list[Person]) -> tuple[str, str]:
    """A question about one of them, or for who it is."""
    person, attribute = rng.choice(crowd), rng.choice(ATTRIBUTES)
    if rng.random() < 0.7:
        question = phrased(rng, f"about_{attribute}", name=person.name)
    else:
        question = phrased(rng, f"who_{attribute}", value=getattr(person, attribute))
    return question, person.says(attribute)


def _placed(rng: random.Random, passage: str, question: str, answer: str) -> Item:
    text = phrased(rng, "placed", passage=passage, question=question)
    return one(text, text, answer)


def people(rng: random.Random) -> list[Person]:
    """Two to thirty people of whom no two share anything; mostly few."""
    most = rng.choices((3, 6, 12, 30), (45, 35, 16, 4))[0]
    count = rng.randint(2, most)
    jobs = [with_article(job) for job in rng.sample(WORDS["jobs"], count)]
    things = [
        with_article(f"{rng.choice(WORDS['colours'])} {thing}")
        for thing in rng.sample(WORDS["objects"], count)
    ]
    names, cities = (
        rng.sample(WORDS["names"], count),
        rng.sample(WORDS["cities"], count),
    )
    hobbies = rng.sample(WORDS["hobbies"], count)
    return [
        Person(*row) for row in zip(names, cities, jobs, things, hobbies, strict=True)
    ]


def told(rng: random.Random, crowd: list[Person]) -> str:
    """All that is known of them, person by person or well mixed."""
    lines = [[person.says(attribute) for attribute in ATTRIBUTES] for person in crowd]
    for of_one in lines:
        rng.shuffle(of_one)
    sentences = [line for of_one in lines for line in of_one]
    if rng.random() < 0.2:
        rng.shuffle(sentences)
    return " ".join(sentences)


def about(rng: random.Random, person: Person, attribute: str) -> str:
    return phrased(rng, f"about_{attribute}", name=person.name)


def _about_settings(rng: random.Random) -> Item:
    most = rng.choices((4, 8, 30), (50, 35, 15))[0]
    keys = rng.sample(WORDS["keys"], rng.randint(2, most))
    settings = {key: rng.randrange(1000) for key in keys}
    wanted = rng.choice(keys)
    passage = "\n".join(f"{key} = {value}" for key, value in settings.items())
    question = phrased(rng, "value_of", key=wanted)
    return _placed(rng, passage, question, f"{wanted} = {settings[wanted]}")


def _nth_sentence(rng: random.Random) -> Item:
    sentences = [sentence(rng) for _ in range(rng.randint(2, 5))]
    n = rng.randrange(len(sentences))
    question = asked(rng, f"What is the {ORDINALS[n]} sentence?")
    return _placed(rng, " ".join(sentences), question, sentences[n])


def sentence(rng: random.Random) -> str:
    adjective = rng.choice(WORDS["adjectives"])
    animal, thing = rng.choice(WORDS["animals"]), rng.choice(WORDS["objects"])
    verb, colour = rng.choice(WORDS["verbs"]), rng.choice(WORDS["colours"])
    return f"The {adjective} {animal} {verb} the {colour} {thing}."
