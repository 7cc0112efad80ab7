"""The routes of who runs a pool: how its phases share the machine. Knows no tokens."""

from aiohttp import web
from pydantic import ValidationError
from redis.asyncio import Redis

from gateway.errors import InvalidRequest, Unavailable, UnknownPool
from gateway.outbox import MAX_CONTROL_ENTRIES
from gateway.pool import PoolView
from mesh.connect import FAILED
from mesh.state import publish
from mesh.streams import Letter
from protocol import keys
from protocol.messages import Shares
from protocol.wire import encode


async def publish_shares(redis: Redis, pool: str, shares: Shares) -> None:
    """For the pool's store, and for the one that may follow it."""
    body = encode(shares)
    letter = Letter(keys.control(pool), {"body": body}, MAX_CONTROL_ENTRIES)
    await publish(redis, keys.shares(pool), body, letter)


class Admin:
    """What is shown of a pool, and changed."""

    def __init__(self, redis: Redis, pool: str, view: PoolView) -> None:
        self._redis = redis
        self._pool = pool
        self._view = view

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/pools/{pool}/shares", self.shares)
        app.router.add_post("/v1/pools/{pool}/shares", self.share)

    async def shares(self, request: web.Request) -> web.Response:
        """What is in force, and what each worker had in its last step."""
        self._check_name(request)
        workers = [
            member.model_dump(
                include={"worker_id", "phases", "running", "percent", "computes_on"}
            )
            for member in self._view.members
            if member.phases
        ]
        shares = self._view.status().shares.model_dump(exclude={"type"})
        return web.json_response({"shares": shares, "workers": workers})

    async def share(self, request: web.Request) -> web.Response:
        """Change it; workers follow between two steps."""
        self._check_name(request)
        shares = _parsed(await request.read())
        try:
            await publish_shares(self._redis, self._pool, shares)
        except FAILED:
            raise Unavailable("The message queue is away.") from None
        return web.json_response({"shares": shares.model_dump(exclude={"type"})})

    def _check_name(self, request: web.Request) -> None:
        name = request.match_info["pool"]
        if name != self._pool:
            raise UnknownPool(f"There is no pool '{name}' here.", param="pool")


def _parsed(body: bytes) -> Shares:
    try:
        return Shares.model_validate_json(body, strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        param = ".".join(str(part) for part in problem["loc"]) or None
        where = f"{param}: " if param else ""
        raise InvalidRequest(f"{where}{problem['msg']}.", param=param) from None
