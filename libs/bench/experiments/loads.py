"""What is asked of each system: the same requests in the same pattern, at any rate.

The n-th request is the same draw at every rate. Only its tokens differ from one rate to
the next, or prefix caches would answer.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.simulation.loads import at_rate
from bench.workload import FIRST_TOKEN, Planned, Scaling, replayed

LONG_PROMPT, LONG_ANSWER = (768, 16), (64, 96)  # mean tokens of prompt and answer
SPREAD = 0.5  # of each length, at most, either way
NUM_PHASES = 4  # of a shifting load, in one point


class Load(Protocol):
    """Requests for one point of an experiment."""

    def requests(self, rate: float, seconds: float, seed: object) -> list[Planned]:
        """So many per second on average, for so long."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Poisson arrivals of long prompts with short answers, and of the opposite.

    Mixed: as many of each, in any order. Shifting: phases of one, then of the other.
    """

    is_shifting: bool
    vocab_size: int
    scale: float = 1.0  # of all lengths

    def requests(self, rate: float, seconds: float, seed: object) -> list[Planned]:
        draws, tokens = random.Random(f"{seed}"), random.Random(f"{seed} {rate}")
        planned = []
        for at in _arrivals(rate, seconds, seed):
            is_heads = draws.random() < 0.5
            is_first = int(NUM_PHASES * at / seconds) % 2 == 0
            has_prompt = is_first if self.is_shifting else is_heads
            factors = [draws.uniform(1 - SPREAD, 1 + SPREAD) for _ in range(2)]
            means = LONG_PROMPT if has_prompt else LONG_ANSWER
            num_input, num_output = (
                max(1, round(self.scale * mean * factor))
                for mean, factor in zip(means, factors, strict=True)
            )
            prompt = [
                tokens.randrange(FIRST_TOKEN, self.vocab_size) for _ in range(num_input)
            ]
            planned.append(Planned(tuple(prompt), num_output, at))
        return planned


@dataclass(frozen=True, slots=True)
class Recorded:
    """The first requests of a trace in its pattern, stretched to the rate."""

    path: Path
    vocab_size: int
    scaling: Scaling

    def requests(self, rate: float, seconds: float, seed: object) -> list[Planned]:
        count = max(1, round(rate * seconds))
        planned = replayed(
            self.path, count, self.vocab_size, self.scaling, f"{seed} {rate}"
        )
        return at_rate(planned, rate)


def _arrivals(rate: float, seconds: float, seed: object) -> Iterator[float]:
    rng = random.Random(f"arrivals {seed}")
    at = rng.expovariate(1.0) / rate
    while at < seconds:
        yield at
        at += rng.expovariate(1.0) / rate
