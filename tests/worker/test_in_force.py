"""What a worker says that it runs on is what engine and device say, not what was asked."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from device.mps import Mps
from worker.in_force import of_counting, on_cpu, on_gpu, show
from worker.settings import WorkerSettings
from worker.startup import fixed_percent, why_whole

MPS = Mps(Path("/run/mps"))
NO_MPS = Mps(Path("/run/mps"), "no daemon listens in /run/mps")
SPLIT = WorkerSettings(device="cuda", dtype="bfloat16", phases="decode", shares=40)


def lanes(*sizes: int) -> Any:
    """A GPU's streams of so many SMs, the whole first."""
    return SimpleNamespace(sizes=dict(zip([None, 0, 1], sizes, strict=False)))


def cuda(without_graphs: str = "") -> Any:
    return SimpleNamespace(without_graphs=without_graphs)


def test_a_split_gpu() -> None:
    """
    The SMs of the whole and of this phase's part, and nothing to give reasons for.
    """
    found = on_gpu(SPLIT, cuda(), lanes(132, 76), "", MPS)

    assert found.is_split
    assert found.in_words() == "cuda bfloat16, 132/76 SMs, MPS, graphs"
    assert found.reasons == ()


def test_a_gpu_that_is_not_split_says_why() -> None:
    """
    Whatever is missing has its reason: the part, the daemon, the graphs.
    """
    reason = why_whole(SPLIT, NO_MPS)

    found = on_gpu(SPLIT, cuda("it waits"), lanes(132), reason, NO_MPS)

    assert not found.is_split
    assert found.in_words() == "cuda bfloat16, 132 SMs, no MPS"
    assert found.reasons == (reason, NO_MPS.reason, "it waits")


@pytest.mark.parametrize(
    ("settings", "mps", "reason"),
    [
        (SPLIT, MPS, ""),
        (SPLIT, NO_MPS, "take turns without MPS: no daemon listens"),
        (SPLIT.model_copy(update={"shares": 0}), MPS, "no split is asked for"),
        (SPLIT.model_copy(update={"phases": "both"}), MPS, "of both phases"),
    ],
    ids=["split", "no daemon", "not asked", "fused"],
)
def test_a_part_is_taken_where_it_helps(
    settings: WorkerSettings, mps: Mps, reason: str
) -> None:
    """
    Only a worker of one phase that runs beside the other's takes a part of the GPU.
    """
    found = why_whole(settings, mps)

    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("phases", "mps", "percent"),
    [
        ("prefill", MPS, 40),
        ("decode", MPS, 60),
        ("decode", replace(MPS, percent="60"), 0),
    ],
    ids=["prefill", "decode", "has it"],
)
def test_a_gpu_that_cannot_be_divided(phases: str, mps: Mps, percent: int) -> None:
    """
    MPS gives the worker of each phase its percentage, once and for all.
    """
    settings = SPLIT.model_copy(update={"phases": phases})

    assert fixed_percent(settings, mps, "", "an old driver") == percent


def test_nobody_starts_anew_for_nothing() -> None:
    """
    Where the GPU is divided, or a part would not help, the worker stays as it is.
    """
    unasked = SPLIT.model_copy(update={"shares": 0})

    assert fixed_percent(SPLIT, MPS, "", "") == 0
    assert fixed_percent(SPLIT, NO_MPS, "no daemon", "no split is asked for") == 0
    assert fixed_percent(unasked, MPS, "", "an old driver") == 0


def test_a_fixed_part_is_in_force() -> None:
    """
    It is said what the worker has, and why it is no part that can change.
    """
    mps = replace(MPS, percent="60")

    found = on_gpu(SPLIT, cuda(), lanes(79), "an old driver", mps)

    assert found.in_words() == "cuda bfloat16, 79 SMs, MPS 60 %, graphs"
    assert found.reasons == ("an old driver",)


def test_a_worker_on_the_host() -> None:
    """
    Its threads, and whether decode steps are tapes or go through the model's modules.
    """
    settings = WorkerSettings(dtype="bfloat16", quantization="int8")
    engine: Any = SimpleNamespace(max_threads=4, without_tapes="")

    found = on_cpu(settings, engine)

    assert found.in_words() == "cpu bfloat16 int8, 4 threads, tapes"
    assert found.reasons == ()


def test_a_worker_without_a_model() -> None:
    """
    The engine that counts computes on nothing, and says so.
    """
    found = of_counting(WorkerSettings(engine="counting"))

    assert found.in_words() == "cpu float32"
    assert found.reasons == ("it only counts",)


def test_prometheus_reads_it_as_labels() -> None:
    """
    One series with the value 1: what is in force can be joined to any other metric.
    """
    show(on_gpu(SPLIT, cuda(), lanes(132, 76), "", MPS))

    labels = {"device": "cuda", "dtype": "bfloat16", "quantization": "none"}
    labels |= {"threads": "0", "lane_sms": "132/76", "mps": "yes", "replay": "graphs"}
    assert REGISTRY.get_sample_value("tandem_worker_compute_info", labels) == 1
