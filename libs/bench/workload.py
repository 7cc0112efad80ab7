"""What to ask and when: prompts of exact lengths that share only what they should.

Prompts are token ids, so that their lengths are the same for every server. Their arrival
is closed loop (a number of clients, each with one request at a time), Poisson, or that of
a recorded trace.
"""

import csv
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from mesh.errors import ConfigurationError

FIRST_TOKEN = 100  # special tokens and bytes are below
MOONCAKE_BLOCK_TOKENS = 512  # a hash of the trace names so many


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send."""

    prompt: tuple[int, ...]
    max_tokens: int
    at: float = 0.0  # seconds after the start of the run


def fixed(
    count: int, num_input: int, num_output: int, vocab_size: int, seed: object
) -> list[Planned]:
    """Prompts of one length, of which no two begin alike, nor like one of another load."""
    rng = random.Random(f"fixed {num_input} {num_output} {seed}")
    return [
        Planned(_tokens(rng, num_input, vocab_size), num_output) for _ in range(count)
    ]


def poisson(planned: Iterable[Planned], rate: float, seed: object) -> list[Planned]:
    """The same at random times, `rate` per second on average."""
    rng = random.Random(f"poisson {seed}")
    now = 0.0
    arriving = []
    for each in planned:
        now += rng.expovariate(rate)
        arriving.append(replace(each, at=now))
    return arriving


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a recorded trace is made to fit a machine."""

    lengths: float = 1.0  # factor of all lengths
    speed: float = 1.0  # of the arrivals: 2 is twice as many in a second
    max_total: int = 1 << 30  # tokens of prompt and output; longer ones are left out

    def fits(self, planned: Planned) -> bool:
        return len(planned.prompt) + planned.max_tokens <= self.max_total


def replayed(
    path: Path, count: int, vocab_size: int, scaling: Scaling, seed: object
) -> list[Planned]:
    """The first `count` requests of a trace that fit: Mooncake's if the file is JSON
    lines, Azure's if it is CSV. ConfigurationError if it is neither.
    """
    read = _mooncake if path.suffix == ".jsonl" else _azure
    try:
        fitting = filter(scaling.fits, read(path, vocab_size, scaling, seed))
        planned = list(islice(fitting, count))
    except (OSError, ValueError, LookupError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if not planned:
        raise ConfigurationError(f"{path}: no request of at most {scaling.max_total}")
    return planned


def _mooncake(
    path: Path, vocab_size: int, scaling: Scaling, seed: object
) -> Iterator[Planned]:
    """Prompts that share the blocks whose hashes are equal (arXiv 2407.00079)."""
    block_tokens = max(1, round(scaling.lengths * MOONCAKE_BLOCK_TOKENS))
    with path.open() as lines:
        for line in lines:
            row = json.loads(line)
            prompt = [
                token
                for block in row["hash_ids"]
                for token in _tokens(
                    random.Random(f"{seed} {block}"), block_tokens, vocab_size
                )
            ]
            yield Planned(
                prompt=tuple(prompt[: _scaled(row["input_length"], scaling)]),
                max_tokens=_scaled(row["output_length"], scaling),
                at=row["timestamp"] / 1000 / scaling.speed,
            )


def _azure(
    path: Path, vocab_size: int, scaling: Scaling, seed: object
) -> Iterator[Planned]:
    """Lengths and times alone are known: prompts share nothing."""
    rng = random.Random(f"azure {seed}")
    with path.open(newline="") as lines:
        start = None
        for row in csv.DictReader(lines):
            # Seven digits of a second are one more than Python reads.
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            start = start or at
            num_input = _scaled(int(row["ContextTokens"]), scaling)
            yield Planned(
                prompt=_tokens(rng, num_input, vocab_size),
                max_tokens=_scaled(int(row["GeneratedTokens"]), scaling),
                at=(at - start).total_seconds() / scaling.speed,
            )


def _scaled(length: int, scaling: Scaling) -> int:
    return max(1, round(length * scaling.lengths))


def _tokens(rng: random.Random, count: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_TOKEN, vocab_size) for _ in range(count))
