"""The shares of the phases change while a whole mesh answers."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import aiohttp
from running import RunningMesh
from storm import LONG_ANSWERS, remember, streamed
from waiting import wait_until

ASKED = LONG_ANSWERS[:8]
CHANGES = [(60, 40), (100, 100), (20, 90), (50, 50)] * 5


async def test_twenty_changes_lose_no_token(mesh: RunningMesh) -> None:
    """
    While answers stream the shares change twenty times: every answer is what it would
    have been, and each change was in force for everyone before the next.
    """
    calm = await streamed(mesh, asked=ASKED)

    async with asyncio.TaskGroup() as tasks:
        changing = tasks.create_task(change(mesh), name="changes")
        answers = await streamed(mesh, asked=ASKED)
        while not changing.done():  # prompts keep coming, so that both phases compute
            await streamed(mesh, asked=ASKED)
    remember("the shares change", answers)

    assert [answer.token_ids for answer in answers] == [a.token_ids for a in calm]
    assert [(each["prefill"], each["decode"]) for each in changes(mesh)] == CHANGES
    assert all(each["seconds"] < 1 for each in changes(mesh))
    await wait_until(mesh.is_idle)
    assert not mesh.miscounts()


async def change(mesh: RunningMesh) -> None:
    async with aiohttp.ClientSession(mesh.url) as client:
        for number, (prefill, decode) in enumerate(CHANGES, start=1):
            shares = {"prefill": prefill, "decode": decode}
            async with client.post("/v1/pools/default/shares", json=shares) as answer:
                assert answer.status == 200
            await wait_until(lambda n=number: len(changes(mesh)) == n)


def changes(mesh: RunningMesh) -> list[dict[str, float]]:
    """That were in force for everyone who computed, as the store says."""
    log = (mesh.run_dir / "logs" / "kvstore-0.log").read_text()
    return [json.loads(line) for line in log.splitlines() if "shares.changed" in line]


def test_a_person_changes_them_and_takes_that_back(mesh: RunningMesh) -> None:
    """
    `tandem shares` sets them, and shows what is in force for whom; with `auto` they follow
    the queue again, which is empty here.
    """
    printed = shares(mesh, "70", "60")
    after = shares(mesh, "auto")

    assert printed["shares"] == {"default": {"prefill": 70, "decode": 60}}
    assert printed["by"] == {"default": "order"}
    assert len(printed["workers"]) == 4
    assert all(each["computes_on"].endswith("cores") for each in printed["workers"])
    assert after["shares"] == {"default": {"prefill": 50, "decode": 50}}
    assert after["by"] == {"default": "queue"}


def shares(mesh: RunningMesh, *new: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tandem", "shares", *new, "--json"]
    command += ["--run-dir", str(mesh.run_dir)]
    printed = subprocess.check_output(command, text=True, timeout=60)
    return dict(json.loads(printed))
