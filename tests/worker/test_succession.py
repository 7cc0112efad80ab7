"""One engine follows another between two steps."""

from engine.counting import CountingEngine
from engine.interface import Chunk
from protocol.messages import InForce
from protocol.sampling import SamplingParams
from worker.succession import Succession

CHUNK = Chunk([1], 0, [0], SamplingParams(temperature=0.0, max_tokens=1), 0)


class Named(CountingEngine):
    """Remembers its steps and its share."""

    def __init__(self, name: str, steps: list[str]) -> None:
        super().__init__(100)
        self.name, self.steps = name, steps
        self.shares: list[tuple[int, int]] = []

    def step(self, chunks: list[Chunk]) -> list[object]:  # type: ignore[override]
        self.steps.append(self.name)
        return super().step(chunks)  # type: ignore[return-value]

    def share(self, percent: int, num_peers: int) -> None:
        self.shares.append((percent, num_peers))


def nobody() -> tuple[Named, InForce]:
    raise AssertionError("it is not asked for")


def test_it_changes_between_two_steps() -> None:
    """
    What begins with one engine ends with it, whenever the other one comes.
    """
    steps: list[str] = []
    first, second = Named("first", steps), Named("second", steps)
    engine = Succession(first, nobody, nobody)

    for _ in range(2):
        with engine.turn():
            engine.offer(second)
            engine.step([CHUNK])

    assert steps == ["first", "second"]


def test_the_share_stays_what_it_is() -> None:
    """
    The second computes on the part that the first was given last.
    """
    first, second = Named("first", []), Named("second", [])
    engine = Succession(first, nobody, nobody)
    engine.share(60, 1)
    engine.share(30, 2)

    engine.offer(second)
    with engine.turn():
        engine.share(40, 2)

    assert first.shares == [(60, 1), (30, 2)]
    assert second.shares == [(30, 2), (40, 2)]
