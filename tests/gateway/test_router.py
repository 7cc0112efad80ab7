"""Which pool gets a request: pure arithmetic over what is known of each."""

from dataclasses import replace

import pytest
from fake_pool import pool_status

from gateway.pool import PoolView
from gateway.prefixes import SentPrefixes, hashes_of
from gateway.router import Candidate, Load, Router, choose

PROMPT = tuple(range(100))
IDLE = Candidate(
    name="a",
    block_size=16,
    num_cached_tokens=0,
    num_free_blocks=100,
    num_waiting=0,
    load=Load(),
)


def view(name: str, **changes: object) -> PoolView:
    known = PoolView(name, lease_seconds=1)
    known.see({name: pool_status(name, **changes)}, [])
    return known


BETTER = {
    "a cached prefix saves computing": {"num_cached_tokens": 48},
    "no prompt waits before it": {"load": Load(num_open=5, num_queued_tokens=0)},
    "fewer answers take their part of each step": {
        "load": Load(num_open=4, num_queued_tokens=500)
    },
}


@pytest.mark.parametrize("why", BETTER)
def test_the_pool_that_answers_sooner_is_chosen(why: str) -> None:
    """
    Whatever makes the first token come sooner counts, in tokens to be computed.
    """
    busy = replace(IDLE, load=Load(num_open=5, num_queued_tokens=500))
    better = replace(busy, name="b", **BETTER[why])

    assert choose([busy, better], 100) == "b"
    assert choose([better, busy], 100) == "b"


@pytest.mark.parametrize(
    "full",
    [
        {"num_free_blocks": 6},
        {"num_waiting": 1},
        {"num_free_blocks": 10, "load": Load(1, num_queued_tokens=100)},
    ],
)
def test_a_pool_without_room_is_the_last_resort(full: dict[str, object]) -> None:
    """
    Where blocks are missing, or others wait for some, no cached prefix helps; but if it
    is so everywhere, it decides again.
    """
    full_pool = replace(IDLE, name="full", **full)
    cached = replace(full_pool, name="cached", num_cached_tokens=2)
    busy = replace(IDLE, name="busy", load=Load(50, 800))

    assert choose([full_pool, cached, busy], 100) == "busy"
    assert choose([full_pool, cached], 100) == "cached"


def test_equal_pools_share_prompts() -> None:
    """
    Of idle equals the first is taken, then the one that has less to do.
    """
    router, views = Router(), [view("a"), view("b")]
    loads: dict[str, Load] = {}

    first = router.route(range(100), "", views, loads)
    loads[first.name] = Load(1, 100)
    second = router.route(range(200, 300), "", views, loads)

    assert [first.name, second.name] == ["a", "b"]


def test_a_conversation_stays_where_its_blocks_are() -> None:
    """
    A prompt that begins like an earlier one goes to the same pool, though it has more to
    do than another.
    """
    router, views = Router(), [view("a"), view("b")]
    router.route(PROMPT, "", views, {"a": Load(1, 50)})

    again = router.route((*PROMPT, 7, 8), "", views, {"b": Load(3, 10)})
    of_others = router.route((*PROMPT, 7, 8), "salt", views, {"b": Load(3, 10)})

    assert (again.name, of_others.name) == ("b", "a")


def test_a_new_store_has_nothing_cached() -> None:
    """
    What was sent to a pool that died counts for nothing.
    """
    router, views = Router(), [view("a"), view("b")]
    router.route(PROMPT, "", views, {"a": Load(1, 50)})

    router.forget("b")

    assert router.route(PROMPT, "", views, {"b": Load(1, 0)}).name == "a"


def test_each_pool_has_blocks_of_its_own_size() -> None:
    """
    Pools may count differently: a prefix is as long as that pool's full blocks.
    """
    router, views = Router(), [view("a", block_size=8), view("b", block_size=64)]
    router.route(range(60), "", views, {})

    again = router.route(range(60), "", views, {"a": Load(num_queued_tokens=50)})

    assert again.name == "a"


def test_a_pool_that_hands_over_has_the_room_of_both() -> None:
    """
    A prompt needs blocks where it is computed and where its answer is.
    """
    pair = PoolView("p", lease_seconds=1)
    small = pool_status("d", free=1)
    pair.see({"p": pool_status("p", handoff_pool="d"), "d": small}, [])

    chosen = Router().route(PROMPT, "", [pair, view("a")], {"a": Load(2, 300)})

    assert chosen.name == "a"


def test_prefixes_are_those_that_a_pool_can_share() -> None:
    """
    Full blocks but for the last token, which is always computed; with another salt they
    are other blocks.
    """
    hashes = hashes_of(range(33), "", 16)

    assert len(hashes) == 2
    assert len(hashes_of(range(32), "", 16)) == 1
    assert hashes_of(range(33), "x", 16) != hashes


def test_what_was_sent_long_ago_is_forgotten() -> None:
    """
    No more blocks are remembered than the pool has; of one prompt the tail goes first.
    """
    sent = SentPrefixes()
    old, new = hashes_of(range(65), "", 16), hashes_of(range(100, 133), "", 16)

    sent.add(old, max_blocks=5)
    sent.add(new, max_blocks=5)

    assert len(sent) == 5
    assert (sent.num_known(old), sent.num_known(new)) == (3, 2)
