"""A disaggregated mesh: prompts are computed in one pool, answers in another one."""

import asyncio
import random
from collections.abc import Iterator

import aiohttp
import pytest
from asking import complete, stream
from reference_model import ReferenceModel
from running import STORIES, RunningMesh, running_mesh
from waiting import wait_until

OPTIONS = ["--served-model-name", "test", "--paradigm", "disaggregated"]
OPTIONS += ["--kv-blocks", "400", "--max-num-batched-tokens", "64", "--threads", "1"]
OPTIONS += ["--check-seconds", "0.1"]


@pytest.fixture(scope="module")
def disaggregated(mesh: RunningMesh) -> Iterator[RunningMesh]:
    """A prefill worker on one store, a decode worker on another."""
    with running_mesh(STORIES, *OPTIONS, "--stem", str(mesh.stem)) as running:
        yield running


def prompts(num_prompts: int) -> list[list[int]]:
    """Of up to three hundred tokens; some begin alike."""
    draw = random.Random(17)
    common = [draw.randrange(3, 512) for _ in range(50)]
    lengths = [draw.choice((1, 15, 16, 40, 100, 300)) for _ in range(num_prompts)]
    return [
        [1, *common[: 50 * (n % 2)], *(draw.randrange(3, 512) for _ in range(n))]
        for n in lengths
    ]


async def test_moved_sequences_go_on_exactly(
    disaggregated: RunningMesh, reference: ReferenceModel
) -> None:
    """
    What is decoded from moved K/V is what transformers generates; afterwards no block is
    held in either pool.
    """
    asked = prompts(10)

    answers = await asyncio.gather(
        *(
            stream(disaggregated.url, prompt=prompt, max_tokens=30, ignore_eos=True)
            for prompt in asked
        )
    )

    assert [answer.token_ids for answer in answers] == [
        reference.greedy(prompt, 30) for prompt in asked
    ]
    await wait_until(disaggregated.is_idle)
    assert not disaggregated.miscounts()


async def test_cached_prefixes_are_counted_where_they_save_time(
    disaggregated: RunningMesh,
) -> None:
    """
    A prompt that was asked before is found in the cache of the pool that computes it.
    """
    asked = {"prompt": [1, *range(100, 150)], "max_tokens": 5}
    first = await complete(disaggregated.url, **asked)

    second = await complete(disaggregated.url, **asked)

    assert second["choices"] == first["choices"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 48


async def test_both_pools_are_shown(disaggregated: RunningMesh) -> None:
    """
    `GET /v1/pools` and `tandem status` tell of each pool, and of who hands over to whom.
    """
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{disaggregated.url}/v1/pools") as response,
    ):
        pools = (await response.json())["data"]

    shown = [(pool["pool"], pool["handoff_pool"]) for pool in pools]
    workers = [{worker["service"] for worker in pool["workers"]} for pool in pools]
    assert shown == [("default", "default-decode"), ("default-decode", "")]
    assert workers == [{"gateway", "kvstore", "prefill"}, {"kvstore", "decode"}]
    assert [p["pool"] for p in disaggregated.status()["pools"]] == [
        "default",
        "default-decode",
    ]
