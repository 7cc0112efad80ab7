"""The options of the commands: their kinds, limits and help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class ParadigmName(StrEnum):
    semi = "semi"
    fused = "fused"
    disaggregated = "disaggregated"


class DTypeName(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class QuantizationName(StrEnum):
    none = "none"
    int8 = "int8"


class EngineName(StrEnum):
    transformer = "transformer"
    counting = "counting"


class DeviceName(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class SharingName(StrEnum):
    auto = "auto"
    ipc = "ipc"
    vmm = "vmm"


class LogLevelName(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormatName(StrEnum):
    auto = "auto"
    json = "json"
    text = "text"


Model = Annotated[
    str,
    Option(
        help="A directory with config.json, or a hub id.",
        show_default="the demo model",
    ),
]
ServedModelName = Annotated[
    str, Option(help="The model's name for clients.", show_default="its own")
]
Host = Annotated[str, Option(help="Address to listen on.")]
Port = Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")]
Paradigm = Annotated[
    ParadigmName,
    Option(
        help="semi: prefill and decode workers over one KV cache; fused: each worker does "
        "both phases; disaggregated: a KV cache for each phase, K/V moves between them."
    ),
]
Prefill = Annotated[
    int | None,
    Option(
        min=1,
        max=64,
        help="Number of prefill workers.",
        show_default="1; fused has none",
    ),
]
Decode = Annotated[int, Option(min=1, max=64, help="Number of decode workers.")]
KVBlocks = Annotated[
    int,
    Option(
        min=0,
        help="KV blocks that all sequences share; disaggregated: in each of both pools.",
        show_default="2048, or what a GPU has left",
    ),
]
BlockSize = Annotated[int, Option(min=1, max=1024, help="Tokens in a KV block.")]
DType = Annotated[DTypeName, Option(help="Of weights and KV blocks.")]
Quantization = Annotated[
    QuantizationName,
    Option(
        help="int8: smaller and faster weights of linear layers, and other answers; "
        "with --dtype bfloat16, on the CPU."
    ),
]
Device = Annotated[DeviceName, Option(help="Whose memory and cores: the pool's.")]
CudaSharing = Annotated[
    SharingName, Option(help="How processes share the GPU's memory; see docs/gpu.md.")
]
RequireZeroCopy = Annotated[
    bool,
    Option(
        "--require-zero-copy",
        help="Do not start where memory would be copied, or --shares not be in force.",
    ),
]
Shares = Annotated[
    int,
    Option(
        min=0,
        max=99,
        help="Percent for prefill at first, while both phases compute; the rest is for "
        "decode. See tandem shares.",
        show_default="by the queue on a CPU, no split of a GPU",
    ),
]
ShareLadder = Annotated[
    str,
    Option(
        metavar="PERCENT,...",
        help="Percents for prefill that a GPU's split can be changed to.",
        show_default="30,50,70 with --shares",
    ),
]
SLOofTTFT = Annotated[
    float,
    Option(
        "--slo-ttft",
        min=0,
        help="Seconds to the first token; shares follow it.",
        show_default="none",
    ),
]
SLOofTPOT = Annotated[
    float,
    Option(
        "--slo-tpot",
        min=0,
        help="Seconds for each later token; shares follow it.",
        show_default="none",
    ),
]
SLOPercentile = Annotated[
    int, Option(min=1, max=100, help="Of requests, for which both hold.")
]
SLOWindow = Annotated[
    float, Option(min=0.1, help="Seconds between two looks at the SLOs.")
]
MaxModelLen = Annotated[
    int,
    Option(
        min=0,
        help="Tokens of prompt and output together.",
        show_default="what model and blocks allow",
    ),
]
MaxNumSeqs = Annotated[
    int, Option(min=1, max=4096, help="Sequences in a decode worker's batch.")
]
MaxNumBatchedTokens = Annotated[
    int,
    Option(
        min=0,
        help="Tokens in a worker's step: how much of a prompt fits into one. 0: 512, and"
        " 8192 for prompts alone on a GPU.",
    ),
]
Threads = Annotated[
    int,
    Option(
        min=0,
        max=1024,
        help="Threads of each worker, at most; who computes at a time shares the cores.",
        show_default="all cores",
    ),
]
Pool = Annotated[str, Option(help="Name of the pool, where meshes share a Redis.")]
Pools = Annotated[
    str,
    Option(
        help="Pools, by commas, among which the gateway chooses: also those of other "
        "meshes on the same Redis.",
        show_default="its own",
    ),
]
RunDir = Annotated[
    Path, Option(help="Directory of the mesh: logs, sockets, its address.")
]
RedisUrl = Annotated[
    str,
    Option(
        envvar="TANDEM_REDIS_URL",
        help="Redis of the mesh, like redis://127.0.0.1:6379.",
        show_default=False,
    ),
]
LogLevel = Annotated[LogLevelName, Option(envvar="TANDEM_LOG_LEVEL")]
LogFormat = Annotated[LogFormatName, Option(envvar="TANDEM_LOG_FORMAT")]
Engine = Annotated[EngineName, Option(hidden=True)]
CheckSeconds = Annotated[float, Option(min=0, hidden=True)]
Stem = Annotated[Path | None, Option(hidden=True)]
AsJson = Annotated[bool, Option("--json", help="For programs.")]
Url = Annotated[
    str,
    Option(help="Of any gateway, like http://127.0.0.1:8000.", show_default=False),
]
Workers = Annotated[
    list[str], Argument(help="Like decode=3 or prefill=2.", metavar="KIND=NUMBER...")
]
NewShares = Annotated[
    list[str] | None,
    Argument(
        help="Percents of prefill and of decode, or auto.",
        metavar="[PREFILL DECODE | auto]",
        show_default=False,
    ),
]
WhichPool = Annotated[
    str, Option("--pool", help="Name of the pool.", show_default="the mesh's own")
]
Seed = Annotated[int, Option(min=0, help="Draws the questions.")]
Count = Annotated[int, Option(min=1, max=10_000, help="Questions of each family.")]
BenchModel = Annotated[
    str, Option(help="As the server names it.", show_default="the first it serves")
]
NumRequests = Annotated[
    int, Option("--requests", min=1, help="Requests of each repeat.")
]
NumInput = Annotated[int, Option("--input", min=1, help="Tokens of each prompt.")]
NumOutput = Annotated[int, Option("--output", min=1, help="Tokens of each answer.")]
Concurrency = Annotated[int, Option(min=1, help="Clients of the closed loop.")]
Rate = Annotated[
    float,
    Option(min=0, help="Poisson arrivals per second, instead of a closed loop."),
]
Trace = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help="Replay: Mooncake's JSON lines or Azure's CSV.",
        show_default=False,
    ),
]
Speed = Annotated[float, Option(min=1e-6, help="Factor of the trace's arrivals.")]
LengthScale = Annotated[float, Option(min=1e-6, help="Factor of the trace's lengths.")]
MaxTotal = Annotated[
    int,
    Option(
        min=2,
        help="Longest request of a trace, prompt and answer; others are left out.",
    ),
]
WarmUp = Annotated[int, Option(min=0, help="Requests that are not counted.")]
Repeats = Annotated[int, Option(min=1, max=1000, help="Runs with other prompts.")]
VocabSize = Annotated[
    int, Option(min=200, help="Token ids of the prompts lie below it.")
]
Plain = Annotated[
    bool,
    Option(
        "--plain",
        help="For servers that take only text and OpenAI's own fields: prompts are "
        "numbers, one word for each token.",
    ),
]
TTFTLimit = Annotated[
    float, Option("--ttft-slo", min=0, help="Of goodput, in ms; 0 is no limit.")
]
TPOTLimit = Annotated[
    float, Option("--tpot-slo", min=0, help="Of goodput, in ms; 0 is no limit.")
]
AnswerSeconds = Annotated[
    float, Option("--timeout", min=1, help="For one whole answer, in seconds.")
]
Plot = Annotated[
    Path | None,
    Option(dir_okay=False, help="Picture of the first repeat.", show_default=False),
]
BenchSeed = Annotated[int, Option("--seed", min=0, help="Draws prompts and times.")]
SimulatedModel = Annotated[
    str,
    Option("--model", help="A known shape, like llama-3-8b, or a config.json's place."),
]
SimulatedDevice = Annotated[
    str,
    Option(
        "--device",
        help="a100-40g, a100-80g, h100, h200, or a file of make bench-calibrate.",
    ),
]


class KindName(StrEnum):
    semi = "semi"
    fused = "fused"
    disaggregated = "disaggregated"


Kinds = Annotated[
    list[KindName] | None,
    Option("--kind", help="Of the pools; may be repeated.", show_default="all"),
]
NumPools = Annotated[
    int, Option("--pools", min=1, max=1000, help="That share the load.")
]
PlanRate = Annotated[
    float,
    Option(
        "--plan",
        min=0,
        help="How many pools for so many requests per second, under the SLOs?",
        show_default="no plan",
    ),
]
ArrivalRate = Annotated[
    float,
    Option(
        "--rate",
        min=0,
        help="Requests per second: Poisson, or the trace's pattern.",
        show_default="1, or the trace's own",
    ),
]
MeanInput = Annotated[int, Option("--input", min=1, help="Mean tokens of prompts.")]
MeanOutput = Annotated[int, Option("--output", min=1, help="Mean tokens of answers.")]
LengthSpread = Annotated[
    float,
    Option(
        "--spread", min=0, max=3, help="Standard deviation of both lengths by the mean."
    ),
]
Split = Annotated[
    tuple[int, int],
    Option(
        "--shares",
        min=1,
        max=100,
        metavar="X Y",
        help="Percent for prefill and decode of semi; a plan finds its own.",
    ),
]
PrefillChips = Annotated[
    int, Option("--prefill", min=1, max=64, help="Prefill chips of disaggregated.")
]
DecodeChips = Annotated[
    int, Option("--decode", min=1, max=64, help="Decode chips of disaggregated.")
]
Transfer = Annotated[
    float,
    Option(min=1e-3, help="GB/s of KV transfer from each prefill chip."),
]
PromptTokens = Annotated[
    int,
    Option(
        "--max-num-batched-tokens", min=1, help="Tokens in a step that has prompts."
    ),
]
KVTokens = Annotated[
    int,
    Option(
        min=0,
        help="Tokens whose K and V a chip holds.",
        show_default="what the weights leave",
    ),
]
