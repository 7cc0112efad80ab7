"""Which processes make a mesh, and what each is told."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.settings import load
from tandem.plan import (
    LADDER_OF_SLO,
    SLO,
    Options,
    Store,
    Workers,
    services,
    stem,
    worker,
)

OPTIONS = Options(
    model=Path("/models/one"),
    served_model_name="one",
    host="127.0.0.1",
    port=8000,
    store=Store(kv_blocks=7, block_size=16, max_model_len=0, check_seconds=0),
    workers=Workers(2, 3, "float32", "counting", max_num_seqs=4, threads=0),
    pool="default",
    pools="default",
    run_dir=Path("run"),
    redis_url="",
    log_level="info",
    log_format="json",
)


def plan(options: Options) -> dict[str, dict[str, str]]:
    """The environment of each process, by its name."""
    place = ("unix:///r.sock", Path("/run"))
    commands = [
        *services(options, *place, listen_fd=9),
        worker(options, *place, "prefill", 0),
        worker(options, *place, "decode", 2),
    ]
    return {command.name: dict(command.env) for command in commands}


def test_there_is_a_process_for_each_part() -> None:
    """
    One store, one gateway, and workers with their numbers.
    """
    names = list(plan(OPTIONS))

    assert names == ["kvstore-0", "gateway-0", "prefill-0", "decode-2"]


def test_every_service_knows_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    No process is told a setting that it would refuse.
    """
    from gateway.settings import Settings as GatewaySettings
    from kvstore.settings import Settings as StoreSettings
    from worker.settings import WorkerSettings

    kinds = {
        "kvstore-0": StoreSettings,
        "prefill-0": WorkerSettings,
        "decode-2": WorkerSettings,
        "gateway-0": GatewaySettings,
    }
    environments = plan(OPTIONS)

    for name, kind in kinds.items():
        monkeypatch.setattr(os, "environ", environments[name])
        assert load(kind).redis_url == "unix:///r.sock"


def test_settings_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What the person's environment says to services does not reach them by accident.
    """
    monkeypatch.setenv("TANDEM_LEASE_SECONDS", "99")
    monkeypatch.setenv("LANG", "C.UTF-8")

    environment = plan(OPTIONS)["kvstore-0"]

    assert "TANDEM_LEASE_SECONDS" not in environment
    assert environment["LANG"] == "C.UTF-8"


def test_no_copies_is_for_all_that_share_memory() -> None:
    """
    Store and workers are told together.
    """
    strict = replace(OPTIONS, store=replace(OPTIONS.store, require_zero_copy=True))

    environments = plan(strict)

    for name in ("kvstore-0", "prefill-0", "decode-2"):
        assert environments[name]["TANDEM_REQUIRE_ZERO_COPY"] == "True"


def test_a_number_of_threads_is_taken_as_it_is() -> None:
    """
    Who asks for threads gets them, whatever the machine has.
    """
    workers = replace(OPTIONS.workers, threads=3)

    environment = plan(replace(OPTIONS, workers=workers))["prefill-0"]

    assert environment["TANDEM_THREADS"] == "3"


def test_services_are_found_wherever_the_command_is_typed() -> None:
    """
    A folder called like a service in the current directory is not the service.
    """
    (*_, gateway) = services(OPTIONS, "unix:///r.sock", Path("/run"), listen_fd=9)

    assert gateway.argv == (sys.executable, "-P", "-m", "gateway")
    assert gateway.pass_fds == (9,)


def test_fused_workers_do_both_phases() -> None:
    """
    Fused, decode workers are all that there is, each with both phases; else a service's
    name is its phase.
    """
    fused = replace(OPTIONS, workers=replace(OPTIONS.workers, paradigm="fused"))

    environment = plan(fused)["decode-2"]

    assert fused.workers.counts == {"decode": 3}
    assert environment["TANDEM_PHASES"] == "both"
    assert OPTIONS.workers.counts == {"prefill": 2, "decode": 3}
    assert "TANDEM_PHASES" not in plan(OPTIONS)["decode-2"]


def test_every_worker_has_the_budget_of_a_step() -> None:
    """
    Whoever computes prompts has as many tokens for them as was asked for.
    """
    workers = replace(OPTIONS.workers, max_num_batched_tokens=2048)

    environments = plan(replace(OPTIONS, workers=workers))

    for name in ("prefill-0", "decode-2"):
        assert environments[name]["TANDEM_MAX_NUM_BATCHED_TOKENS"] == "2048"


def test_only_decode_workers_have_large_batches() -> None:
    """
    A prefill worker holds few prompts, so that others can start the next ones.
    """
    environments = plan(OPTIONS)

    assert environments["decode-2"]["TANDEM_MAX_NUM_SEQS"] == "4"
    assert "TANDEM_MAX_NUM_SEQS" not in environments["prefill-0"]


def test_int8_reaches_every_worker() -> None:
    """
    All workers of a pool share weights, so all are told what these are.
    """
    workers = replace(OPTIONS.workers, dtype="bfloat16", quantization="int8")

    environments = plan(replace(OPTIONS, workers=workers))

    for name in ("prefill-0", "decode-2"):
        assert environments[name]["TANDEM_DTYPE"] == "bfloat16"
        assert environments[name]["TANDEM_QUANTIZATION"] == "int8"


def test_nothing_is_quantized_unasked() -> None:
    """
    Workers of a mesh that nobody asked for int8 are told so.
    """
    assert plan(OPTIONS)["decode-2"]["TANDEM_QUANTIZATION"] == "none"


def test_disaggregated_is_two_pools() -> None:
    """
    Each phase has a store of its own; what the first one's workers computed goes to the
    second one, whose workers can compute again what was preempted there.
    """
    workers = replace(OPTIONS.workers, paradigm="disaggregated")
    environments = plan(replace(OPTIONS, workers=workers))
    prefill, decode = environments["prefill-0"], environments["decode-2"]
    first, second = environments["kvstore-0"], environments["kvstore-1"]

    assert first["TANDEM_HANDOFF_POOL"] == second["TANDEM_POOL"] == "default-decode"
    assert "TANDEM_HANDOFF_POOL" not in second
    assert decode["TANDEM_POOL"] == second["TANDEM_POOL"]
    assert decode["TANDEM_PHASES"] == "both"
    assert decode["TANDEM_STORE_SOCKET"] == second["TANDEM_STORE_SOCKET"]
    assert prefill["TANDEM_POOL"] == first["TANDEM_POOL"] == "default"
    assert prefill["TANDEM_STORE_SOCKET"] == first["TANDEM_STORE_SOCKET"]
    assert first["TANDEM_STORE_SOCKET"] != second["TANDEM_STORE_SOCKET"]
    assert first["TANDEM_KV_BLOCKS"] == second["TANDEM_KV_BLOCKS"] == "7"


def test_the_gateway_knows_the_pools_of_others() -> None:
    """
    Of several meshes on one Redis each gateway may serve all.
    """
    environment = plan(replace(OPTIONS, pools="default,other"))["gateway-0"]

    assert environment["TANDEM_POOLS"] == "default,other"
    assert environment["TANDEM_POOL"] == "default"


def test_shares_and_slos_reach_who_needs_them() -> None:
    """
    The store knows the shares at first, the gateway the SLOs, and on a GPU workers make
    the splits that shares may change to.
    """
    workers = replace(OPTIONS.workers, shares=40)
    slo = SLO(ttft_seconds=0.5, percentile=99)
    on_cpu = plan(replace(OPTIONS, workers=workers, slo=slo))
    on_gpu = plan(replace(OPTIONS, workers=replace(workers, device="cuda"), slo=slo))

    assert on_cpu["kvstore-0"]["TANDEM_SHARES"] == "40"
    assert on_cpu["gateway-0"]["TANDEM_SLO_TTFT_SECONDS"] == "0.5"
    assert on_cpu["gateway-0"]["TANDEM_SLO_PERCENTILE"] == "99"
    assert on_cpu["decode-2"]["TANDEM_SHARE_LADDER"] == ""
    assert on_gpu["decode-2"]["TANDEM_SHARE_LADDER"] == LADDER_OF_SLO


@pytest.mark.parametrize(
    ("engine", "device", "is_forked"),
    [
        ("transformer", "cpu", True),
        ("transformer", "cuda", False),
        ("counting", "cpu", False),
    ],
)
def test_workers_that_need_torch_are_forks(
    engine: str, device: str, is_forked: bool
) -> None:
    """
    On the CPU, of one stem, which their loaders are told of, too.
    """
    workers = replace(OPTIONS.workers, engine=engine, device=device)
    options = replace(OPTIONS, workers=workers)

    command = worker(options, "unix:///r.sock", Path("/run"), "decode", 0)

    expected = Path("/run/stem.sock") if is_forked else None
    assert options.has_stem == is_forked
    assert command.stem == expected
    assert command.env.get("TANDEM_STEM_SOCKET") == (expected and str(expected))


def test_several_meshes_may_have_one_stem() -> None:
    """
    Then none has one of its own, and workers and loaders are forks of that one.
    """
    workers = replace(OPTIONS.workers, engine="transformer")
    options = replace(OPTIONS, workers=workers, stem=Path("/other/stem.sock"))

    command = worker(options, "unix:///r.sock", Path("/run"), "decode", 0)

    assert command.stem == Path("/other/stem.sock")
    assert command.env["TANDEM_STEM_SOCKET"] == "/other/stem.sock"


def test_a_stem_has_no_settings() -> None:
    """
    Those of its forks are theirs.
    """
    command = stem(listen_fd=9)

    assert command.argv == (sys.executable, "-P", "-m", "worker.stem", "9")
    assert command.pass_fds == (9,)
    assert not [name for name in command.env if name.startswith("TANDEM_")]
