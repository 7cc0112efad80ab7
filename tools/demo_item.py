"""One conversation of the demo data, and the words that its questions are made of."""

import random
import tomllib
import zlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
WORDS: dict[str, list[str]] = tomllib.loads((HERE / "demo_words.toml").read_text())
SPELLABLE = sorted(
    {w.lower() for words in WORDS.values() for w in words if w.isalpha()}
)

PHRASINGS: dict[str, list[str]] = tomllib.loads(
    (HERE / "demo_phrasings.toml").read_text()
)

ONSETS = (
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl gr pl pr sh sl st th tr"
)
VOWELS = "a e i o u a e i o ai ea ee oo ou"
CODAS = " , , ,b,d,g,l,ll,m,n,nd,ng,p,pp,r,rr,rt,s,ss,st,t,tt,y"


@dataclass(frozen=True, slots=True)
class Item:
    """Questions with their answers, in order, and what must not be known beforehand."""

    keys: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    is_kept_back: bool  # for questions that nobody was trained on


def item(keys: tuple[str, ...], turns: tuple[tuple[str, str], ...]) -> Item:
    """Kept back if any of its keys is: whatever the seed, by its hash."""
    return Item(keys, turns, any(is_kept_back(key) for key in keys))


def one(key: str, question: str, answer: str) -> Item:
    return item((key,), ((question, answer),))


def is_kept_back(key: str) -> bool:
    return zlib.crc32(key.encode()) % 10 == 0


def phrased(rng: random.Random, kind: str, **values: object) -> str:
    """One way to put a question of this kind."""
    return rng.choice(PHRASINGS[kind]).format(**values)


def asked(rng: random.Random, text: str) -> str:
    """The question as people type it: polite or not, with or without its last mark."""
    if rng.random() < 0.12:
        text = rng.choice(("Please: ", "Hi! ", "Hello. ", "Now: ", "Question: ")) + text
    if rng.random() < 0.12 and text[-1] in ".?" and text[-2] != '"':
        text = text[:-1]
    if rng.random() < 0.12 and not text[:2].isupper():
        text = text[0].lower() + text[1:]
    return text


def word(rng: random.Random, least: int, most: int) -> str:
    """A word to spell: a real one, or one that sounds like one."""
    while True:
        drawn = rng.choice(SPELLABLE) if rng.random() < 0.4 else _syllables(rng)
        if least <= len(drawn) <= most:
            return drawn


def _syllables(rng: random.Random) -> str:
    parts = (ONSETS.split(), VOWELS.split(), CODAS.replace(" ", "").split(","))
    return "".join(rng.choice(part) for _ in range(rng.randint(1, 4)) for part in parts)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
