"""Which systems are compared."""

import pytest

from bench.experiments.systems import KINDS, named, peers
from bench.measures import SLO
from mesh.errors import ConfigurationError

SLOS = SLO(ttft=0.75, tpot=0.05)


def test_all_have_the_same_memory() -> None:
    """
    Each of both pools of a disaggregated system has half of it.
    """
    for name, kind in KINDS.items():
        options = kind(2048, SLOS).options
        blocks = options[options.index("--kv-blocks") + 1]
        assert blocks == ("1024" if name.startswith("disaggregated") else "2048")


def test_smaller_chunks_are_all_that_makes_another_fused_system() -> None:
    """
    A fused system is as good as its chunks suit the SLO, so there are two of it.
    """
    plain, small = (KINDS[name](64, SLOS).options for name in ("fused", "fused-128"))

    assert small == (*plain, "--max-num-batched-tokens", "128")


def test_shares_follow_the_slos_that_everyone_is_judged_by() -> None:
    """
    In seconds, as tandem up takes them; without any there is nothing to follow.
    """
    options = KINDS["semi-dynamic"](64, SLOS).options

    assert "--slo-ttft 0.7500 --slo-tpot 0.0500" in " ".join(options)
    with pytest.raises(ConfigurationError, match="comes after another system"):
        KINDS["semi-dynamic"](64, SLO(ttft=0.75))


def test_a_split_is_named_after_what_prefill_has() -> None:
    """
    Decode has the rest; where both have all of the machine they compete.
    """
    shares = {name: KINDS[name](64, SLOS).shares for name in KINDS}

    assert shares["semi-70"] == (70, 30)
    assert shares["semi-100"] == (100, 100)
    assert shares["semi"] is None


def test_systems_are_named_once_and_in_order() -> None:
    """
    A name that is none says which there are.
    """
    assert named("semi,fused,semi") == ["semi", "fused"]
    with pytest.raises(ConfigurationError, match="no system 'vllm'; there are fused,"):
        named("fused,vllm")


def test_peers_are_names_with_addresses() -> None:
    """
    They serve already, so nothing is started.
    """
    (peer,) = peers(["vllm=http://127.0.0.1:8101/"])

    assert (peer.name, peer.url) == ("vllm", "http://127.0.0.1:8101")
    assert not peer.is_ours


@pytest.mark.parametrize("peer", ["vllm", "=http://a", "vllm=a:80", "fused=http://a"])
def test_a_peer_that_is_none(peer: str) -> None:
    """
    Without a name of its own, or an address.
    """
    with pytest.raises(ConfigurationError, match="NAME=http"):
        peers([peer])
