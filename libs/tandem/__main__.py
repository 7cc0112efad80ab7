"""The `tandem` command. Each command's module is imported when it is called."""

import sys
from pathlib import Path

import typer

from mesh.errors import ConfigurationError
from tandem import options as of
from tandem.experiment import experiment

EXIT_WRONG = 2
RUN_DIR = Path(".tandem")
DEMO_MODEL = str(Path(__file__).parents[2] / "models" / "demo")  # in a checkout

app = typer.Typer(
    name="tandem",
    help="LLM serving with prefill and decode as separate services over one "
    "shared KV cache.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(experiment)


@app.command()
def up(
    model: of.Model = DEMO_MODEL,
    served_model_name: of.ServedModelName = "",
    host: of.Host = "127.0.0.1",
    port: of.Port = 8000,
    paradigm: of.Paradigm = of.ParadigmName.semi,
    prefill: of.Prefill = None,
    decode: of.Decode = 1,
    kv_blocks: of.KVBlocks = 0,
    block_size: of.BlockSize = 16,
    dtype: of.DType = of.DTypeName.float32,
    quantization: of.Quantization = of.QuantizationName.none,
    device: of.Device = of.DeviceName.cpu,
    cuda_sharing: of.CudaSharing = of.SharingName.auto,
    shares: of.Shares = 0,
    share_ladder: of.ShareLadder = "",
    slo_ttft: of.SLOofTTFT = 0.0,
    slo_tpot: of.SLOofTPOT = 0.0,
    slo_percentile: of.SLOPercentile = 90,
    slo_window: of.SLOWindow = 5.0,
    require_zero_copy: of.RequireZeroCopy = False,
    max_model_len: of.MaxModelLen = 0,
    max_num_seqs: of.MaxNumSeqs = 64,
    max_num_batched_tokens: of.MaxNumBatchedTokens = 0,
    threads: of.Threads = 0,
    pool: of.Pool = "default",
    pools: of.Pools = "",
    run_dir: of.RunDir = RUN_DIR,
    redis_url: of.RedisUrl = "",
    log_level: of.LogLevel = of.LogLevelName.info,
    log_format: of.LogFormat = of.LogFormatName.auto,
    engine: of.Engine = of.EngineName.transformer,
    check_seconds: of.CheckSeconds = 0.0,
    stem: of.Stem = None,
) -> None:
    """Start a mesh on this machine and keep it running until Ctrl-C.

    Prints `ready http://HOST:PORT` once a request would be answered. Without
    --redis-url a Redis of its own runs beside the services.
    """
    from tandem import models, plan
    from tandem.up import check_environment, check_paradigm, run

    check_environment()
    slo = plan.SLO(slo_ttft, slo_tpot, slo_percentile, slo_window)
    asks_shares = bool(shares or share_ladder or slo.is_set)
    check_paradigm(paradigm, prefill, asks_shares=asks_shares, device=device)
    run(
        plan.Options(
            model=models.find(model),
            served_model_name=served_model_name or models.name_of(model),
            host=host,
            port=port,
            store=plan.Store(
                kv_blocks,
                block_size,
                max_model_len,
                check_seconds,
                device,
                cuda_sharing,
                require_zero_copy,
            ),
            workers=plan.Workers(
                prefill or 1,
                decode,
                dtype,
                engine,
                max_num_seqs,
                threads,
                device,
                shares,
                paradigm.value,
                max_num_batched_tokens,
                quantization,
                share_ladder,
            ),
            slo=slo,
            pool=pool,
            pools=pools or pool,
            run_dir=run_dir,
            redis_url=redis_url,
            log_level=log_level,
            log_format=log_format,
            stem=stem,
        )
    )


@app.command()
def status(
    run_dir: of.RunDir = RUN_DIR,
    redis_url: of.RedisUrl = "",
    json: of.AsJson = False,
) -> None:
    """Show the processes of a mesh and the state of its KV blocks."""
    from tandem.rundir import address_of
    from tandem.status import show

    show(redis_url or address_of(run_dir).redis_url, as_json=json)


@app.command()
def shares(
    new: of.NewShares = None,
    pool: of.WhichPool = "",
    run_dir: of.RunDir = RUN_DIR,
    redis_url: of.RedisUrl = "",
    json: of.AsJson = False,
) -> None:
    """Show how prefill and decode share the machine, or change it: tandem shares 60 40.

    In percent, for while both phases compute; together they may be more than 100: then
    the phases compete. It changes between two steps, and no answer is lost. With auto
    they are again what they are at the start: without --shares they follow the queue.
    """
    from tandem.rundir import address_of
    from tandem.shares import run

    address = None if redis_url else address_of(run_dir)
    run(
        address.redis_url if address else redis_url,
        pool or (address.pool if address else "default"),
        new or [],
        as_json=json,
    )


@app.command()
def scale(workers: of.Workers, run_dir: of.RunDir = RUN_DIR) -> None:
    """Change the number of workers of a running mesh: tandem scale decode=3.

    Nothing is lost: a worker that is stopped leaves its sequences to the others.
    """
    from tandem.rundir import address_of
    from tandem.scaling import ask, parsed

    counts = ask(address_of(run_dir).sockets, parsed(workers))
    print(", ".join(f"{service} {count}" for service, count in counts.items()))


@app.command()
def chat(run_dir: of.RunDir = RUN_DIR, url: of.Url = "") -> None:
    """Talk to a mesh: the one of --run-dir, or any at --url.

    Without a terminal each line of the input is one question.
    """
    from tandem.chat import run
    from tandem.rundir import address_of

    run(url or address_of(run_dir).gateway_url)


@app.command()
def eval_demo(
    run_dir: of.RunDir = RUN_DIR,
    url: of.Url = "",
    seed: of.Seed = 0,
    count: of.Count = 50,
    json: of.AsJson = False,
) -> None:
    """Ask a mesh questions with known answers that the demo model was never trained on.

    Each seed draws other questions. Answers are greedy and must be right to the letter.
    """
    from tandem.evaluation import run
    from tandem.rundir import address_of

    gateway_url = url or address_of(run_dir).gateway_url
    run(gateway_url, seed=seed, count=count, as_json=json)


@app.command()
def bench(
    run_dir: of.RunDir = RUN_DIR,
    url: of.Url = "",
    model: of.BenchModel = "",
    requests: of.NumRequests = 48,
    num_input: of.NumInput = 256,
    num_output: of.NumOutput = 64,
    concurrency: of.Concurrency = 8,
    rate: of.Rate = 0.0,
    trace: of.Trace = None,
    speed: of.Speed = 1.0,
    length_scale: of.LengthScale = 1.0,
    max_total: of.MaxTotal = 2048,
    warm_up: of.WarmUp = 8,
    repeats: of.Repeats = 3,
    vocab_size: of.VocabSize = 1000,
    plain: of.Plain = False,
    seed: of.BenchSeed = 0,
    ttft_slo: of.TTFTLimit = 0.0,
    tpot_slo: of.TPOTLimit = 0.0,
    timeout: of.AnswerSeconds = 600.0,
    json: of.AsJson = False,
    plot: of.Plot = None,
) -> None:
    """Measure a server: TTFT, TPOT, ITL, throughput and goodput under a load.

    Works with any server that streams OpenAI's completions and takes token ids as a
    prompt. Prompts are random and never repeated; a trace of Mooncake's shares what
    its hashes say.
    """
    from bench.benchmark import Plan, run
    from bench.measures import SLO
    from bench.workload import Scaling
    from tandem.rundir import address_of

    run(
        url or address_of(run_dir).gateway_url,
        Plan(
            model=model,
            num_requests=requests,
            num_input=num_input,
            num_output=num_output,
            num_clients=concurrency,
            rate=rate,
            trace=trace,
            scaling=Scaling(length_scale, speed, max_total),
            num_warmups=warm_up,
            num_repeats=repeats,
            vocab_size=vocab_size,
            is_plain=plain,
            seed=seed,
            answer_seconds=timeout,
            slo=SLO(ttft_slo / 1000 or None, tpot_slo / 1000 or None),
        ),
        as_json=json,
        plot=plot,
    )


@app.command()
def simulate(
    model: of.SimulatedModel = "llama-3-8b",
    device: of.SimulatedDevice = "a100-80g",
    kind: of.Kinds = None,
    rate: of.ArrivalRate = 0.0,
    requests: of.NumRequests = 1000,
    num_input: of.MeanInput = 512,
    num_output: of.MeanOutput = 128,
    spread: of.LengthSpread = 0.5,
    trace: of.Trace = None,
    speed: of.Speed = 1.0,
    length_scale: of.LengthScale = 1.0,
    max_total: of.MaxTotal = 131_072,
    ttft_slo: of.TTFTLimit = 0.0,
    tpot_slo: of.TPOTLimit = 0.0,
    pools: of.NumPools = 1,
    plan: of.PlanRate = 0.0,
    shares: of.Split = (100, 100),
    prefill: of.PrefillChips = 1,
    decode: of.DecodeChips = 1,
    transfer: of.Transfer = 25.0,
    max_num_batched_tokens: of.PromptTokens = 2048,
    max_num_seqs: of.MaxNumSeqs = 512,
    kv_tokens: of.KVTokens = 0,
    seed: of.BenchSeed = 0,
    json: of.AsJson = False,
) -> None:
    """Predict TTFT, TPOT and goodput of pools of each kind, on devices you need not have.

    A roofline of each step, and every request on its way; docs/experiments.md says what
    is measured of it and what is assumed.
    """
    from bench.measures import SLO
    from bench.simulation.command import Question, run
    from bench.simulation.control import Shares
    from bench.simulation.costs import Costs
    from bench.simulation.design import KINDS, Design
    from bench.simulation.devices import device_of
    from bench.simulation.loads import Lengths
    from bench.simulation.shapes import shape_of
    from bench.simulation.worker import Rules
    from bench.workload import Scaling

    rules = Rules(max_num_batched_tokens, max_num_seqs)
    costs = Costs(shape_of(model), device_of(device))
    run(
        [
            Design(
                each,
                costs,
                prefill=rules,
                decode=rules,
                shares=Shares(*shares),
                num_prefill=prefill,
                num_decode=decode,
                transfer_bytes=1e9 * transfer,
                max_tokens=kv_tokens,
            )
            for each in KINDS
            if kind is None or each in kind
        ],
        Question(
            lengths=Lengths(num_input, num_output, spread),
            num_requests=requests,
            rate=rate or (0.0 if trace else 1.0),
            trace=trace,
            scaling=Scaling(length_scale, speed, max_total),
            seed=seed,
            slo=SLO(ttft_slo / 1000 or None, tpot_slo / 1000 or None),
        ),
        num_pools=pools,
        plan_rate=plan,
        as_json=json,
    )


def main() -> None:
    """Run a command; what a person got wrong is one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except* (ConfigurationError, typer.TyperException) as group:
        print(f"tandem: {_one_line(group)}", file=sys.stderr)
        sys.exit(EXIT_WRONG)


def _one_line(error: BaseException) -> str:
    """The first error of a group of groups, without its line breaks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = (
        error.format_message()
        if isinstance(error, typer.TyperException)
        else str(error)
    )
    return " ".join(text.split())


if __name__ == "__main__":
    main()
