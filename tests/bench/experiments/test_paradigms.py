"""Systems in turn: stand-ins that serve already, and one real mesh."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from found import DECISION, SETTING
from rich.progress import Progress
from running import STORIES

from bench.experiments.findings import Findings
from bench.experiments.loads import Drawn
from bench.experiments.paradigms import NUM_UNLOADED, Bar, Plan, measure
from bench.experiments.systems import System
from mesh.errors import ConfigurationError

SETTING_HERE = SETTING.model_copy(
    update={"seconds": 0.5, "ttft_slo": 5.0, "tpot_slo": 1.0, "rates": (5.0, 50.0)}
)
STEP_SECONDS = 0.03


@dataclass
class StandIn:
    """Answers so many at once, refuses more, and at some time answers nobody."""

    most_at_once: int = 1000
    most_in_all: int = 1000
    has_pools: bool = True
    num_running: int = 0
    num_asked: int = 0

    @property
    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/models", self.models)
        if self.has_pools:
            app.router.add_get("/v1/pools", self.pools)
            app.router.add_get("/v1/pools/one/decisions", self.decisions)
        return app

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.num_asked += 1
        if self.num_asked > self.most_in_all:
            await asyncio.Event().wait()
        if self.num_running == self.most_at_once:
            return web.Response(status=503)
        self.num_running += 1
        await asyncio.sleep(STEP_SECONDS)
        self.num_running -= 1
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range((await request.json())["max_tokens"]):
            await response.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        return response

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "one"}]})

    async def pools(self, _: web.Request) -> web.Response:
        blocks = {"total": 1000, "referenced": self.num_running}
        shares = {"prefill": 60, "decode": 40}
        pool = {"pool": "one", "blocks": blocks, "shares": shares}
        return web.json_response({"data": [pool]})

    async def decisions(self, _: web.Request) -> web.Response:
        long_ago = DECISION.model_dump() | {"at": 0.0}
        now = DECISION.model_dump() | {"at": time.time()}
        return web.json_response({"data": [now, long_ago]})


STAND_INS = {
    "quick": StandIn(),
    "again": StandIn(),
    "busy": StandIn(most_at_once=1, has_pools=False),
    "tired": StandIn(most_in_all=NUM_UNLOADED),
}


@pytest.fixture
async def urls() -> AsyncIterator[dict[str, str]]:
    """Where the stand-ins serve."""
    async with AsyncExitStack() as stack:
        found = {}
        for name, stand_in in STAND_INS.items():
            server = TestServer(replace(stand_in).app, handler_cancellation=True)
            running = await stack.enter_async_context(server)
            found[name] = str(running.make_url("")).rstrip("/")
        yield found


def plan(out: Path, peers: dict[str, str], **changed: object) -> Plan:
    out.mkdir(exist_ok=True)
    return Plan(
        setting=SETTING_HERE.model_copy(update=changed),
        model="",
        systems=[],
        peers=[System(name, url=url) for name, url in peers.items()],
        load=Drawn(is_shifting=False, vocab_size=500, scale=0.1),
        out=out / "found",
    )


async def measured(asked: Plan) -> Findings:
    with Progress(disable=True) as progress:
        return await measure(asked, Bar(progress))


async def test_systems_are_asked_until_they_fail(
    urls: dict[str, str], tmp_path: Path
) -> None:
    """
    Each at rising rates, and all at the reference rate; a mesh's memory and shares are
    seen, and of a server that tells nothing nothing is.
    """
    peers = {"busy": urls["busy"], "quick": urls["quick"]}

    found = await measured(plan(tmp_path, peers))

    busy, quick = found.systems
    assert (busy.highest, quick.highest, found.reference) == (5.0, 50.0, 5.0)
    assert [point.rate for point in busy.points] == [5.0, 50.0]
    assert not any(point.samples or point.decisions for point in busy.points)
    assert quick.points[0].samples[0].shares == (60, 40)
    assert [each.reason for each in quick.points[0].decisions] == [DECISION.reason]


async def test_who_comes_too_late_has_failed(
    urls: dict[str, str], tmp_path: Path
) -> None:
    """
    A point ends when nobody can meet the SLOs any more, and counts who is not answered.
    """
    tired = {"tired": urls["tired"]}

    found = await measured(plan(tmp_path, tired, ttft_slo=0.1, tpot_slo=0.01))

    (point,) = found.systems[0].points
    assert point.attainment == 0
    assert point.run.num_failed == point.run.num_requests > 0
    assert point.run.errors == ("not answered while it could meet its SLOs",)


async def test_systems_take_turns(urls: dict[str, str], tmp_path: Path) -> None:
    """
    Each rate is asked of all before the next one is, so often as there are rounds, and
    what only warms them up is not counted.
    """
    peers = {"quick": urls["quick"], "again": urls["again"]}
    counted = await measured(plan(tmp_path / "one", {"quick": urls["quick"]}))

    found = await measured(plan(tmp_path, peers, rounds=2, warm_up_seconds=0.2))

    assert [[each.rate for each in system.points] for system in found.systems] == [
        [5.0, 5.0, 50.0, 50.0]
    ] * 2
    assert [
        (each.run.num_requests, each.run.num_failed)
        for system in found.systems
        for each in system.points[-2:]
    ] == [(counted.systems[0].points[-1].run.num_requests, 0)] * 4


async def test_an_experiment_goes_on_where_it_was(
    urls: dict[str, str], tmp_path: Path
) -> None:
    """
    A point that was measured is not asked again; another setting is not mixed in.
    """
    quick = {"quick": urls["quick"]}
    before = await measured(plan(tmp_path, quick))

    after = await measured(plan(tmp_path, {"quick": "http://127.0.0.1:9"}))
    with pytest.raises(ConfigurationError, match="other settings"):
        await measured(plan(tmp_path, quick, seed=1))

    assert after == before


async def test_an_interrupted_experiment_lacks_a_point_at_most(
    urls: dict[str, str], tmp_path: Path
) -> None:
    """
    What was measured before stays as it was found.
    """
    asked = plan(tmp_path, {"quick": urls["quick"]})
    found = await measured(asked)
    whole = found.systems[0].points
    asked.keep(found.also(found.systems[0].model_copy(update={"points": whole[:1]})))

    again = (await measured(asked)).systems[0].points

    assert again[0] == whole[0]
    assert again[1] != whole[1]
    assert again[1].rate == whole[1].rate


async def test_a_peer_that_is_not_there_is_named(tmp_path: Path) -> None:
    """
    Before anything is measured.
    """
    with pytest.raises(ConfigurationError, match="no answer from gone"):
        await measured(plan(tmp_path, {"gone": "http://127.0.0.1:9"}))


async def test_a_real_mesh_is_started_asked_and_stopped(tmp_path: Path) -> None:
    """
    Its shares are what the system's name says. Its engine counts upwards.
    """
    options = "--model", str(STORIES), "--engine", "counting"
    asked = plan(tmp_path, {}, rates=(20.0,), options=options)

    found = await measured(replace(asked, systems=["semi-100"]))

    (point,) = found.systems[0].points
    assert point.run.num_failed == 0
    assert point.samples[0].shares == (100, 100)
    assert point.samples[0].used.keys() == {"default"}


def test_meshes_have_one_stem_if_there_is_one(tmp_path: Path) -> None:
    """
    Where torch is imported already; a person's own options come after it.
    """
    asked = plan(tmp_path, {}, options=("--dtype", "bfloat16"))
    at_all = ["--dtype", "bfloat16"]

    assert asked.options == at_all
    assert replace(asked, stem=Path("/s")).options == ["--stem", "/s", *at_all]


async def test_a_mesh_that_does_not_start_says_why(tmp_path: Path) -> None:
    """
    In its own words.
    """
    asked = plan(tmp_path, {}, options=("--model", "/no/model"))

    with pytest.raises(ConfigurationError, match=r"did not start: tandem: .*/no/model"):
        await measured(replace(asked, systems=["semi-100"]))
