"""What is asked at each point, and for as long as something changes."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from small_load import SMALL

from bench.benchmark import Plan
from bench.experiments.scale import Load
from bench.measures import Outcome
from bench.workload import Planned


class Client:
    """Answers at once, and remembers what it was asked."""

    def __init__(self, *, num_until_over: int = 0) -> None:
        self.asked: list[Planned] = []
        self.is_over = asyncio.Event()
        self._num_until_over = num_until_over

    async def ask(self, planned: Planned) -> Outcome:
        await asyncio.sleep(0)
        self.asked.append(planned)
        if len(self.asked) == self._num_until_over:
            self.is_over.set()
        return Outcome(0.0, (1.0,), len(planned.prompt), planned.max_tokens)


def plan(rate: float) -> Plan:
    return replace(SMALL, num_requests=5, num_warmups=3, rate=rate)


async def test_a_warm_up_is_not_counted() -> None:
    """
    Its prompts are others than those that count, or the prefix cache would answer.
    """
    client = Client()

    outcomes = await Load(client, plan(0.0)).ask("one")

    assert len(outcomes) == 5
    assert len({each.prompt for each in client.asked}) == 3 + 5


async def test_points_ask_different_prompts() -> None:
    """
    What one point has computed does not help the next one.
    """
    client = Client()
    load = Load(client, plan(0.0))

    await load.ask("one")
    await load.ask("another")

    assert len({each.prompt for each in client.asked}) == 2 * (3 + 5)


@pytest.mark.parametrize("rate", [0.0, 500.0], ids=["closed", "poisson"])
async def test_a_load_goes_on_until_it_is_over(rate: float) -> None:
    """
    However many requests that takes: their times go on where those of the plan end.
    """
    client = Client(num_until_over=13)

    outcomes = await Load(client, plan(rate)).ask_until(client.is_over, "move")

    assert 13 <= len(outcomes) <= 15
    assert len({each.prompt for each in client.asked}) == len(outcomes)
    if rate:
        assert all(a.at < b.at for a, b in pairwise(client.asked))
