"""When requests are sent: by clients that take turns, or at their times."""

import asyncio
from itertools import count, takewhile

import pytest

from bench.load import closed_loop, in_order, open_loop
from bench.measures import Outcome
from bench.workload import Planned


class Server:
    """Answers after a while, and remembers how many waited at once."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds = seconds
        self.num_now = 0
        self.most = 0
        self.asked: list[int] = []

    async def ask(self, planned: Planned) -> Outcome:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        self.asked.append(planned.max_tokens)
        self.num_now += 1
        self.most = max(self.most, self.num_now)
        await asyncio.sleep(self.seconds)
        self.num_now -= 1
        return Outcome(sent, (loop.time(),), 1, planned.max_tokens)


def numbered(count: int, *times: float) -> list[Planned]:
    """Requests told apart by how many tokens they ask for."""
    arrivals = times or (0.0,) * count
    return [Planned((1,), number, arrivals[number]) for number in range(count)]


@pytest.mark.parametrize("num_clients", [1, 3, 20])
async def test_a_closed_loop_keeps_its_clients_busy(num_clients: int) -> None:
    """
    As many requests are under way as there are clients, never more, and all are asked.
    """
    server = Server()

    outcomes = await closed_loop(numbered(12), server.ask, num_clients)

    assert server.most == min(num_clients, 12)
    assert server.asked == list(range(12))
    assert len(outcomes) == 12


async def test_an_open_loop_waits_for_nobody() -> None:
    """
    A slow server gets the next request all the same.
    """
    server = Server(seconds=0.2)

    outcomes = await open_loop(numbered(5, *(n / 100 for n in range(5))), server.ask)

    assert server.most == 5
    assert len(outcomes) == 5


async def test_an_open_loop_sends_each_at_its_time() -> None:
    """
    In the order of their times, and none before its own.
    """
    server = Server()
    start = asyncio.get_running_loop().time()
    planned = numbered(3, 0.2, 0.0, 0.1)

    outcomes = await open_loop(planned, server.ask)

    assert server.asked == [1, 2, 0]
    at = {outcome.num_output_tokens: outcome.sent - start for outcome in outcomes}
    assert all(at[each.max_tokens] >= each.at - 0.001 for each in planned)


async def test_requests_in_order_may_have_no_end() -> None:
    """
    Each is drawn when it is its turn: what decides when to stop may happen meanwhile.
    """
    server = Server()
    is_over = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, is_over.set)
    endless = (Planned((1,), number, number / 100) for number in count())

    outcomes = await in_order(
        takewhile(lambda _: not is_over.is_set(), endless), server.ask
    )

    assert server.asked == list(range(len(outcomes)))
    assert 2 <= len(outcomes) <= 7
