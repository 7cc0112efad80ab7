"""Streams that begin at even times, and prompts that arrive among them at random ones.

Both arrive whatever the server does: servers that keep up have the same throughput. What
the streams see counts while prompts arrive, and not before or after.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.client import connected
from bench.load import open_loop
from bench.measures import Outcome
from bench.workload import Planned, fixed, poisson


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked. Lengths are tokens of prompt and answer."""

    stream_rate: float  # streams per second
    of_streams: tuple[int, int]
    of_prompts: tuple[int, int]
    rate: float  # prompts per second
    seconds: float
    vocab_size: int
    seed: str
    settle_seconds: float = 1.0  # of streams alone, before anything counts
    answer_seconds: float = 60.0  # for one whole answer

    def streams(self) -> list[Planned]:
        """Evenly, from the beginning until time is over."""
        count = int(self.stream_rate * (self.settle_seconds + self.seconds))
        planned = fixed(
            count, *self.of_streams, self.vocab_size, f"{self.seed} streams"
        )
        return [
            replace(one, at=number / self.stream_rate)
            for number, one in enumerate(planned)
        ]

    def prompts(self) -> list[Planned]:
        """Poisson's times, given that so many fall into the time that there is."""
        count = int(self.rate * self.seconds)
        seed = f"{self.seed} prompts"
        planned = fixed(count + 1, *self.of_prompts, self.vocab_size, seed)
        *arriving, last = poisson(planned, self.rate or 1.0, seed)
        return [replace(one, at=one.at * self.seconds / last.at) for one in arriving]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of a mix; their defaults can be set."""
    parser.add_argument("--stream-rate", type=float, default=8.0)
    parser.add_argument("--stream-tokens", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--prompt-output", type=int, default=16)
    parser.add_argument("--rate", type=float, default=4.0, help="prompts per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--settle-seconds", type=float, default=3.0)
    parser.add_argument("--vocab-size", type=int, default=100_000)


def mix_of(given: argparse.Namespace) -> Mix:
    """What these options ask for."""
    return Mix(
        stream_rate=given.stream_rate,
        of_streams=(given.stream_tokens[0], given.stream_tokens[1]),
        of_prompts=(given.prompt_tokens, given.prompt_output),
        rate=given.rate,
        seconds=given.seconds,
        vocab_size=given.vocab_size,
        seed="both",
        settle_seconds=given.settle_seconds,
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of the streams, and of the prompts that arrived among them."""

    began: float  # seconds of the outcomes' clock
    seconds: float
    streams: Sequence[Outcome]
    prompts: Sequence[Outcome]

    @property
    def itls(self) -> list[float]:
        """Of the streams, in seconds: gaps that ended while prompts arrived."""
        ended = self.began + self.seconds
        return [
            itl
            for each in self.streams
            for itl, at in zip(each.itls, each.times[1:], strict=False)
            if self.began < at <= ended
        ]

    @property
    def tokens_per_second(self) -> float:
        """Of the streams. Pieces may have several tokens: of whole answers one knows."""
        whole = [each for each in self.streams if each.num_output_tokens]
        num_pieces = sum(len(each.times) for each in whole)
        num_tokens = sum(each.num_output_tokens for each in whole)
        of_piece = num_tokens / num_pieces if num_pieces else 1.0
        return len(self.itls) * of_piece / self.seconds


async def drive(url: str, mix: Mix) -> Seen:
    """Until time is over and the last prompt answered; then the streams are hung up on.

    A stream that failed before that has its error.
    """
    is_over = asyncio.Event()

    async def ask_on(one: Planned) -> Outcome:
        outcome = await client.ask(one)
        if is_over.is_set():  # hung up on: no failure, and nobody counted its tokens
            return replace(outcome, error="", num_output_tokens=0)
        return outcome

    async with (
        asyncio.TaskGroup() as tasks,
        connected(url, "", mix.answer_seconds) as client,
    ):
        streams = tasks.create_task(open_loop(mix.streams(), ask_on), name="streams")
        await asyncio.sleep(mix.settle_seconds)
        began = time.monotonic()
        arriving = tasks.create_task(
            open_loop(mix.prompts(), client.ask), name="prompts"
        )
        await asyncio.gather(arriving, asyncio.sleep(mix.seconds))
        is_over.set()
        client.hang_up()
    return Seen(began, mix.seconds, streams.result(), arriving.result())
