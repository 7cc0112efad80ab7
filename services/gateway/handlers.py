"""The OpenAI routes: each call is checked and becomes orders. Knows no Redis."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from gateway.admission import Admission
from gateway.answers import ChatAnswer, CompletionAnswer, model_card
from gateway.body import body_of
from gateway.errors import UnknownModel
from gateway.generation import Arrived, Requests
from gateway.openai import ChatCall, CompletionCall, parse
from gateway.orders import OrderBook
from gateway.pool import PoolView
from gateway.pools import Pools
from gateway.respond import Work, respond
from gateway.settings import Settings
from protocol.messages import InForce, PoolStatus, WorkerStatus

DEFAULT_COMPLETION_TOKENS = 16


class Handlers:
    """The routes over the pools."""

    def __init__(
        self, settings: Settings, requests: Requests, pools: Pools, admission: Admission
    ) -> None:
        self._settings = settings
        self._requests = requests
        self._model = requests.model
        self._pools = pools
        self._admission = admission

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{id:.+}", self.one_model)
        app.router.add_get("/v1/pools", self.pools)

    async def pools(self, _: web.Request) -> web.Response:
        """The pools behind this gateway: blocks, what happened there, who lives."""
        self._pools.known()
        pools = [
            status.summary()
            | {
                "ready": view.is_ready,
                "shares_by": self._shares_by(view, status),
                "workers": _workers(view.members, status.pool),
            }
            for view in self._pools.views
            for status in view.statuses
        ]
        slo = self._settings.goals.summary()
        return web.json_response({"object": "list", "data": pools, "slo": slo})

    def _shares_by(self, view: PoolView, status: PoolStatus) -> str:
        """Who decides them; empty where no phase has one."""
        if not view.is_divided:
            return ""
        if self._settings.steers and status.shares_by != "order":
            return "controller"
        return "queue" if status.shares_by == "queue" else "people"

    async def completions(self, request: web.Request) -> web.StreamResponse:
        arrived = Arrived.now()
        with self._admission.enter():
            limits = self._pools.limits()
            call = parse(CompletionCall, await body_of(request, self._settings))
            self._check_name(call.model)
            book = OrderBook(self._model, limits)
            orders = [
                order
                for prompt in call.prompt
                for order in book.orders(
                    call,
                    await self._model.encode(prompt, limits.max_tokens),
                    DEFAULT_COMPLETION_TOKENS,
                )
            ]
            answer = CompletionAnswer(call, orders[0].request_id, self._model.name)
            return await self._respond(request, Work(orders, answer, arrived))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        arrived = Arrived.now()
        with self._admission.enter():
            limits = self._pools.limits()
            call = parse(ChatCall, await body_of(request, self._settings))
            self._check_name(call.model)
            prompt_ids = await self._model.encode_chat(call.messages, limits.max_tokens)
            book = OrderBook(self._model, limits)
            orders = book.orders(call, prompt_ids, limits.max_tokens)
            answer = ChatAnswer(call, orders[0].request_id, self._model.name)
            return await self._respond(request, Work(orders, answer, arrived))

    async def _respond(self, request: web.Request, work: Work) -> web.StreamResponse:
        with self._admission.enter(len(work.orders) - 1):  # the first has its place
            return await respond(request, self._requests, work)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._card()]})

    async def one_model(self, request: web.Request) -> web.Response:
        self._check_name(request.match_info["id"])
        return web.json_response(self._card())

    def _card(self) -> dict[str, object]:
        limits = self._pools.limits()
        return model_card(self._model.name, self._model.created, limits.max_tokens)

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self._model.name):
            raise UnknownModel(
                f"The model '{name}' does not exist: '{self._model.name}' is served.",
                param="model",
            )


def _workers(members: Sequence[WorkerStatus], pool: str) -> list[dict[str, Any]]:
    return [
        member.model_dump(exclude={"type", "pool"}) | _in_words(member.in_force)
        for member in sorted(members, key=lambda member: member.worker_id)
        if member.pool == pool
    ]


def _in_words(found: InForce | None) -> dict[str, Any]:
    """As `tandem status` says it."""
    return {
        "runs_on": found.in_words() if found else "",
        "why_not_more": "; ".join(found.reasons) if found else "",
    }
