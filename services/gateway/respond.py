"""An answer goes to its client, whole or as a stream of events. Knows no routes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web

from gateway.answers import Answer, Choice, Usage, error_event
from gateway.errors import ApiError
from gateway.generation import Arrived, Generation, Requests
from gateway.orders import Order
from gateway.output import Delta

IS_STREAMING = web.RequestKey("is_streaming", bool)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """One call: its orders, prompt by prompt, and how it is to be answered."""

    orders: Sequence[Order]
    answer: Answer
    arrived: Arrived


async def respond(
    request: web.Request, requests: Requests, work: Work
) -> web.StreamResponse:
    """Generate every choice of the call."""
    if work.answer.is_streamed:
        return await _stream(request, requests, work)
    return await _whole(requests, work)


async def _whole(requests: Requests, work: Work) -> web.Response:
    async def choice(_: int, order: Order) -> Choice:
        async with requests.generate(order, work.arrived) as generation:
            deltas = [await generation.next()]
            while deltas[-1].finish_reason is None:
                deltas.append(await generation.next())
            return Choice(
                order.prompt_ids,
                _joined(deltas),
                _usage(generation),
                generation.mean_logprob,
            )

    choices = await _for_each(work.orders, choice)
    return web.Response(
        body=work.answer.whole(choices), content_type="application/json"
    )


def _joined(deltas: Sequence[Delta]) -> Delta:
    return deltas[-1]._replace(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
    )


def _usage(generation: Generation) -> Usage:
    order = generation.order
    return Usage(
        num_prompt_tokens=order.num_counted_prompt_tokens,
        num_output_tokens=generation.num_tokens,
        num_cached_tokens=generation.num_cached_tokens if order.choice == 0 else 0,
    )


async def _stream(
    request: web.Request, requests: Requests, work: Work
) -> web.StreamResponse:
    stream = EventStream(request)
    with suppress(ConnectionError):  # the client is gone, and its request cancelled
        await _send_choices(stream, requests, work)
        await stream.response.write_eof()
    return stream.response


async def _send_choices(stream: "EventStream", requests: Requests, work: Work) -> None:
    """Until the first event an error is still an ordinary answer, then an event."""

    async def choice(index: int, order: Order) -> Usage:
        async with requests.generate(order, work.arrived) as generation:
            await _send_choice(stream, work.answer, index, generation)
            return _usage(generation)

    try:
        usages = await _for_each(work.orders, choice)
        await stream.send(work.answer.end(usages))
    except ApiError as error:
        if not stream.is_open:
            raise
        await stream.send(error_event(error))


async def _send_choice(
    stream: "EventStream", answer: Answer, index: int, generation: Generation
) -> None:
    delta = await generation.next()
    prompt_ids = generation.order.prompt_ids
    await stream.send(answer.first_chunk(index, delta, prompt_ids))
    while delta.finish_reason is None:
        delta = await generation.next()
        if answer.is_worth_sending(delta):
            await stream.send(answer.chunk(index, delta))


class EventStream:
    """A response that begins with its first event."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._opening = asyncio.Lock()  # choices of one call share the response
        self.is_open = False
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # proxies must pass events on at once
            }
        )

    async def send(self, events: bytes) -> None:
        if not self.is_open:
            await self._open()
        await self.response.write(events)

    async def _open(self) -> None:
        async with self._opening:
            if not self.is_open:
                self._request[IS_STREAMING] = True
                await self.response.prepare(self._request)
                self.is_open = True


async def _for_each(
    orders: Sequence[Order], work: Callable[[int, Order], Awaitable[T]]
) -> list[T]:
    """All orders at once; the first error ends the others and is raised as it is."""
    if len(orders) == 1:
        return [await work(0, orders[0])]

    async def one(index: int, order: Order) -> T:
        return await work(index, order)

    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(one(index, order), name=f"choice-{index}")
                for index, order in enumerate(orders)
            ]
    except BaseExceptionGroup as group:
        raise _first(group) from None
    return [task.result() for task in running]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
