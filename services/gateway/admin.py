"""The routes of who runs a pool: how its phases share the machine. Knows no tokens."""

import re

from aiohttp import web
from pydantic import ValidationError
from redis.asyncio import Redis

from gateway.body import body_of
from gateway.errors import InvalidRequest, Unavailable, UnknownPool
from gateway.pool import PoolView
from gateway.pools import Pools
from gateway.settings import Settings
from mesh.connect import FAILED
from mesh.state import publish, withdraw
from mesh.streams import newest
from protocol import keys
from protocol.messages import ForgetShares, Shares, decode_decision
from protocol.wire import encode

SHOWN_DECISIONS = 100
# A browser sends this type to another site only if that allows it, which we do not.
JSON = "application/json"


async def publish_shares(redis: Redis, pool: str, shares: Shares) -> None:
    """For the pool's store, and for the one that may follow it."""
    stream, body = keys.control(pool), encode(shares)
    await publish(redis, keys.shares(pool), stream, body, keys.MAX_CONTROL_ENTRIES)


class Admin:
    """What is shown of a pool, and changed."""

    def __init__(self, redis: Redis, pools: Pools, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._pools = pools

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/pools/{pool}/shares", self.shares)
        app.router.add_post("/v1/pools/{pool}/shares", self.share)
        app.router.add_delete("/v1/pools/{pool}/shares", self.unshare)
        app.router.add_get("/v1/pools/{pool}/decisions", self.decisions)

    async def shares(self, request: web.Request) -> web.Response:
        """What is in force, and what each worker had in its last step."""
        name, view = self._found(request)
        view.check()
        (status,) = [status for status in view.statuses if status.pool == name]
        workers = [
            member.model_dump(
                include={"worker_id", "phases", "running", "percent", "computes_on"}
            )
            for member in view.members
            if member.phases and member.pool == name
        ]
        shares = status.shares.model_dump(exclude={"type"})
        found = {"shares": shares, "by": status.shares_by, "workers": workers}
        return web.json_response(found)

    async def share(self, request: web.Request) -> web.Response:
        """Change it; workers follow between two steps."""
        name, _ = self._found(request)
        if request.content_type != JSON:
            raise InvalidRequest(f"The body has to be {JSON}.")
        shares = _parsed(await body_of(request, self._settings))
        try:
            await publish_shares(self._redis, name, shares)
        except FAILED:
            raise Unavailable("The message queue is away.") from None
        return web.json_response({"shares": shares.model_dump(exclude={"type"})})

    async def unshare(self, request: web.Request) -> web.Response:
        """They are again what they are at the start; on a CPU they follow the queue."""
        name, _ = self._found(request)
        key, stream, body = (
            keys.shares(name),
            keys.control(name),
            encode(ForgetShares()),
        )
        try:
            await withdraw(self._redis, key, stream, body, keys.MAX_CONTROL_ENTRIES)
        except FAILED:
            raise Unavailable("The message queue is away.") from None
        return web.json_response({"shares": None})

    async def decisions(self, request: web.Request) -> web.Response:
        """What became of the shares in the latest windows, the newest first."""
        name, _ = self._found(request)
        stream = keys.decisions(name)
        count = _limit(request.query.get("limit", str(SHOWN_DECISIONS)))
        try:
            entries = await newest(self._redis, stream, count)
        except FAILED:
            raise Unavailable("The message queue is away.") from None
        decisions = [decode_decision(entry.fields[b"body"]) for entry in entries]
        data = [decision.summary() for decision in decisions]
        return web.json_response({"object": "list", "data": data})

    def _found(self, request: web.Request) -> tuple[str, PoolView]:
        """The pool that a path names, and the view that it is in."""
        name = request.match_info["pool"]
        for view in self._pools.views:
            if name in view.names:
                return name, view
        raise UnknownPool(f"There is no pool '{name}' here.", param="pool")


def _limit(given: str) -> int:
    """How many to show; InvalidRequest if that is no number of some."""
    if re.fullmatch("[0-9]{1,3}", given) and 1 <= int(given) <= SHOWN_DECISIONS:
        return int(given)
    raise InvalidRequest(f"limit: between 1 and {SHOWN_DECISIONS}.", param="limit")


def _parsed(body: bytes) -> Shares:
    try:
        return Shares.model_validate_json(body, strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        param = ".".join(str(part) for part in problem["loc"]) or None
        where = f"{param}: " if param else ""
        raise InvalidRequest(f"{where}{problem['msg']}.", param=param) from None
