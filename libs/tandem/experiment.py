"""`tandem experiment`: real meshes under load, compared and drawn."""

import signal
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from tandem import options as of

SYSTEMS = "fused,disaggregated,semi,semi-50,semi-100,semi-dynamic"

experiment = typer.Typer(
    name="experiment", help="Measure real meshes under load, and draw what was found."
)


class LoadName(StrEnum):
    mixed = "mixed"
    shifting = "shifting"


Model = Annotated[str, Option(help="As of tandem up.", show_default="the demo model")]
Systems = Annotated[str, Option(metavar="NAME,...", help="Of ours, in their order.")]
Peers = Annotated[
    list[str] | None,
    Option(
        "--peer",
        metavar="NAME=URL",
        help="A server that runs already and serves the model; may be repeated.",
        show_default=False,
    ),
]
LoadKind = Annotated[
    LoadName,
    Option(help="Long prompts and long answers: mixed, or one phase after the other."),
]
Rates = Annotated[
    str,
    Option(
        metavar="RATE,...",
        help="Requests per second, rising; each system is asked until it fails its SLOs.",
        show_default="searched, to 10 %",
    ),
]
Seconds = Annotated[float, Option(min=1, help="Of arrivals at each rate.")]
WarmUpSeconds = Annotated[
    float, Option(min=0, help="Of arrivals before them, which do not count.")
]
Rounds = Annotated[
    int, Option(min=1, help="At each rate: the systems are asked in turn so often.")
]
Blocks = Annotated[
    int,
    Option("--kv-blocks", min=2, help="Of each system; disaggregated: half per pool."),
]
LengthScale = Annotated[float, Option(min=1e-6, help="Factor of all lengths.")]
TTFTLimit = Annotated[
    float,
    Option(
        "--ttft-slo", min=0, help="In ms.", show_default="7.5 times that without load"
    ),
]
TPOTLimit = Annotated[
    float,
    Option(
        "--tpot-slo", min=0, help="In ms.", show_default="10 times that without load"
    ),
]
PrefillCounts = Annotated[
    str,
    Option(
        "--prefill",
        metavar="NUMBER,...",
        help="Prefill containers, one number after the other.",
        show_default="as many as there are",
    ),
]
DecodeCounts = Annotated[
    str,
    Option(
        "--decode",
        metavar="NUMBER,...",
        help="Decode containers, for each number of prefill containers.",
        show_default="as many as there are",
    ),
]
Project = Annotated[
    str,
    Option(help="Of docker compose.", show_default="the only mesh that runs"),
]
GatewayUrl = Annotated[
    str,
    Option(
        "--url",
        help="Of the gateway.",
        show_default="the port that its container opens",
    ),
]
ScalePlot = Annotated[
    Path | None, Option("--plot", dir_okay=False, help="Picture.", show_default=False)
]
Out = Annotated[
    Path,
    Option(
        help="Beginning of the names of the results, a .json and a .png. Points that "
        "they have already, with these settings, are not measured again."
    ),
]
OfUp = Annotated[
    list[str] | None,
    Argument(
        metavar="[-- OPTIONS]",
        help="For each tandem up, like -- --dtype bfloat16.",
        show_default=False,
    ),
]


@experiment.callback()
def _group() -> None:
    """Told to end, they do as after Ctrl-C: meshes are stopped, containers given back.

    Also in the background of a script, where shells have Ctrl-C ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@experiment.command()
def paradigms(
    options: OfUp = None,
    model: Model = "",
    systems: Systems = SYSTEMS,
    peer: Peers = None,
    load: LoadKind = LoadName.mixed,
    trace: of.Trace = None,
    length_scale: LengthScale = 1.0,
    max_total: of.MaxTotal = 2048,
    rates: Rates = "",
    seconds: Seconds = 30.0,
    warm_up_seconds: WarmUpSeconds = 5.0,
    rounds: Rounds = 1,
    seed: of.BenchSeed = 0,
    ttft_slo: TTFTLimit = 0.0,
    tpot_slo: TPOTLimit = 0.0,
    kv_blocks: Blocks = 2048,
    vocab_size: of.VocabSize = 1000,
    out: Out = Path("paradigms"),
    json: of.AsJson = False,
) -> None:
    """Fused, disaggregated and semi serving under the same arrivals, at rising rates.

    Each system is a mesh on this machine. They take turns, rate by rate, each started for
    its turn and stopped, so that they compare also where the machine's speed drifts.
    Shown is the highest rate at which 90 % of the requests met both SLOs.
    """
    from bench.experiments.findings import Setting
    from bench.experiments.loads import Drawn, Recorded
    from bench.experiments.paradigms import Plan, run
    from bench.experiments.sweep import listed
    from bench.experiments.systems import named, peers
    from bench.workload import Scaling
    from tandem.stem import shared_stem

    scaling = Scaling(length_scale, 1.0, max_total)
    plan = Plan(
        setting=Setting(
            model=Path(model).name or "demo",
            options=tuple(options or ()),
            load=trace.name if trace else load.value,
            length_scale=length_scale,
            seconds=seconds,
            warm_up_seconds=warm_up_seconds,
            rounds=rounds,
            seed=seed,
            kv_blocks=kv_blocks,
            ttft_slo=ttft_slo / 1000 or None,
            tpot_slo=tpot_slo / 1000 or None,
            rates=listed(rates),
        ),
        model=model,
        systems=named(systems),
        peers=peers(peer or []),
        load=Recorded(trace, vocab_size, scaling)
        if trace
        else Drawn(load == LoadName.shifting, vocab_size, length_scale),
        out=out,
    )
    with shared_stem() as stem:
        run(replace(plan, stem=stem), as_json=json)


@experiment.command()
def scale(
    prefill: PrefillCounts = "",
    decode: DecodeCounts = "",
    project: Project = "",
    url: GatewayUrl = "",
    requests: of.NumRequests = 48,
    num_input: of.NumInput = 64,
    num_output: of.NumOutput = 128,
    concurrency: of.Concurrency = 8,
    rate: of.Rate = 0.0,
    warm_up: of.WarmUp = 8,
    vocab_size: of.VocabSize = 1000,
    seed: of.BenchSeed = 0,
    timeout: of.AnswerSeconds = 600.0,
    json: of.AsJson = False,
    plot: ScalePlot = None,
) -> None:
    """More prefill and decode containers, and fewer, of a mesh that docker compose runs.

    Measures a load at each combination, and how long streams pause while containers come
    and go. Afterwards there are as many as before.
    """
    from bench.benchmark import Plan
    from bench.experiments.scale_command import run
    from bench.measures import SLO
    from bench.workload import Scaling

    run(
        {"prefill": prefill, "decode": decode},
        Plan(
            model="",
            num_requests=requests,
            num_input=num_input,
            num_output=num_output,
            num_clients=concurrency,
            rate=rate,
            trace=None,
            scaling=Scaling(),
            num_warmups=warm_up,
            num_repeats=1,
            vocab_size=vocab_size,
            is_plain=False,
            seed=seed,
            answer_seconds=timeout,
            slo=SLO(),
        ),
        project=project,
        url=url,
        as_json=json,
        plot=plot,
    )
