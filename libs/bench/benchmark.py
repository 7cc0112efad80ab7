"""`tandem bench`: a workload, warm-up and repeats included, against one server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import Progress

from bench.client import Client, connected
from bench.load import closed_loop, open_loop
from bench.measures import SLO, Outcome, measured
from bench.report import Report, as_table, draw
from bench.workload import Planned, Scaling, fixed, poisson, replayed
from mesh.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person asked for. Without rate and trace it is a closed loop."""

    model: str  # empty: the first that the server has
    num_requests: int
    num_input: int
    num_output: int
    num_clients: int
    rate: float  # Poisson arrivals per second, or 0
    trace: Path | None
    scaling: Scaling
    num_warmups: int
    num_repeats: int
    vocab_size: int
    is_plain: bool  # prompts as text, and fields of OpenAI's alone
    seed: int
    answer_seconds: float  # for one whole answer
    slo: SLO

    def __str__(self) -> str:
        if self.trace:
            return f"{self.num_requests} requests of {self.trace.name}"
        lengths = f"{self.num_requests} requests of {self.num_input}/{self.num_output}"
        if self.rate:
            return f"{lengths}, {self.rate:g} per second"
        return f"{lengths}, {self.num_clients} at once"

    @property
    def is_closed_loop(self) -> bool:
        return not (self.rate or self.trace)

    def requests(self, repeat: object) -> list[Planned]:
        """Each repeat asks something else, or caches would answer."""
        seed = f"{self.seed} {repeat}"
        if self.trace:
            return replayed(
                self.trace, self.num_requests, self.vocab_size, self.scaling, seed
            )
        planned = self._fixed(self.num_requests, seed)
        return poisson(planned, self.rate, seed) if self.rate else planned

    def warmups(self) -> list[Planned]:
        return self._fixed(self.num_warmups, "warm-up")

    def _fixed(self, count: int, seed: str) -> list[Planned]:
        return fixed(count, self.num_input, self.num_output, self.vocab_size, seed)


def run(url: str, plan: Plan, *, as_json: bool, plot: Path | None) -> None:
    """Measure and print; ConfigurationError when the server cannot be asked at all."""
    if plot and not find_spec("matplotlib"):
        raise ConfigurationError("plots need matplotlib: pip install matplotlib")
    repeats = [plan.requests(number) for number in range(plan.num_repeats)]
    errors = Console(stderr=True)
    with Progress(
        console=errors, transient=True, disable=not errors.is_terminal
    ) as progress:
        total = plan.num_warmups + sum(map(len, repeats))
        bar = progress.add_task("asking", total=total)
        measuring = _measure(url, plan, repeats, lambda: progress.advance(bar))
        outcomes = asyncio.run(measuring)
    report = Report(
        url=url,
        workload=str(plan),
        runs=tuple(measured(each, plan.slo) for each in outcomes),
    )
    if plot:
        draw(outcomes[0], f"{url}: {plan}", plot)
    if as_json:
        figures = {n: spread.model_dump() for n, spread in report.figures().items()}
        print(json.dumps(report.model_dump() | {"figures": figures}, indent=2))
    else:
        Console().print(as_table(report))


async def _measure(
    url: str,
    plan: Plan,
    repeats: Iterable[list[Planned]],
    on_answer: Callable[[], None],
) -> list[list[Outcome]]:
    """The outcomes of each repeat."""

    async def ask(planned: Planned) -> Outcome:
        outcome = await client.ask(planned)
        on_answer()
        return outcome

    async with connected_to(url, plan) as client:
        check(await closed_loop(plan.warmups(), ask, plan.num_clients))
        return [
            await closed_loop(requests, ask, plan.num_clients)
            if plan.is_closed_loop
            else await open_loop(requests, ask)
            for requests in repeats
        ]


@asynccontextmanager
async def connected_to(url: str, plan: Plan) -> AsyncIterator[Client]:
    """The plan's client; ConfigurationError if it cannot ask inside."""
    try:
        async with connected(
            url, plan.model, plan.answer_seconds, is_plain=plan.is_plain
        ) as client:
            yield client
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigurationError(f"no answer from {url}: {reason}") from None


def check(warmed_up: Iterable[Outcome]) -> None:
    """The first requests compile kernels and open connections, and are not counted; a
    server that cannot answer them is not measured.
    """
    for outcome in warmed_up:
        if not outcome.is_answered:
            raise ValueError(outcome.error or "an answer without a token")
