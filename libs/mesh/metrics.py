"""Every metric of the mesh, in one table. Names follow vLLM's after our prefix."""

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip

# The gateway's view: one request from its client's side.
TIME_TO_FIRST_TOKEN = Histogram(
    "tandem_time_to_first_token_seconds",
    "Arrival of a request to its first token.",
    buckets=_LATENCY_BUCKETS,
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "tandem_time_per_output_token_seconds",
    "(E2E - TTFT) / (output tokens - 1), per request.",
    buckets=_LATENCY_BUCKETS,
)
E2E_REQUEST_LATENCY = Histogram(
    "tandem_e2e_request_latency_seconds",
    "Arrival of a request to its last token.",
    buckets=_LATENCY_BUCKETS,
)
DECISIONS = Counter(
    "tandem_shares_decisions_total",
    "Windows that the controller judged, by how.",
    ["reason"],
)
REQUESTS = Counter(
    "tandem_request_total", "Requests that ended, by how.", ["finish_reason"]
)
REJECTIONS = Counter(
    "tandem_admission_rejections_total", "Requests refused at the door.", ["reason"]
)
PROMPT_TOKENS = Counter("tandem_prompt_tokens_total", "Prompt tokens accepted.")
GENERATION_TOKENS = Counter(
    "tandem_generation_tokens_total", "Output tokens sent to clients."
)
OPEN_REQUESTS = Gauge("tandem_open_requests", "Requests being answered.")

# A worker's view: its batch.
NUM_REQUESTS_RUNNING = Gauge(
    "tandem_num_requests_running", "Sequences in this worker's batch."
)
STEP_SECONDS = Histogram(
    "tandem_step_seconds",
    "One step of the batch: model, sampling and the store's answer.",
    buckets=_LATENCY_BUCKETS,
)
COMPUTE = Gauge(
    "tandem_worker_compute_info",
    "What this worker really runs on.",
    ["device", "dtype", "quantization", "threads", "lane_sms", "mps", "replay"],
)
DEAD_LETTERS = Counter("tandem_dead_letters_total", "Jobs given up on.")

# The store's view: its blocks.
MEMORY_SHARING = Gauge(
    "tandem_memory_sharing_info", "How workers come to the pool's memory.", ["way"]
)
NUM_REQUESTS_WAITING = Gauge(
    "tandem_num_requests_waiting", "Sequences that wait for KV blocks."
)
KV_BLOCKS = Gauge("tandem_kv_blocks", "KV blocks by state.", ["state"])
KV_CACHE_USAGE = Gauge(
    "tandem_kv_cache_usage_ratio", "Referenced KV blocks among all, 0 to 1."
)
PREFIX_CACHE_QUERIES = Counter(
    "tandem_prefix_cache_queries_total", "Prompt tokens looked up in the cache."
)
PREFIX_CACHE_HITS = Counter(
    "tandem_prefix_cache_hits_total", "Prompt tokens that were found there."
)
NUM_PREEMPTIONS = Counter(
    "tandem_num_preemptions_total", "Sequences that gave their KV blocks back."
)
SHARES = Gauge(
    "tandem_shares_percent",
    "Of the machine for a phase, while both compute.",
    ["phase"],
)
SHARES_CHANGE_SECONDS = Histogram(
    "tandem_shares_change_seconds",
    "A change of the shares: until each worker that computes is between two steps.",
    buckets=_LATENCY_BUCKETS,
)
PARKS = Counter("tandem_parks_total", "Sequences left in the store for another worker.")
ADOPTIONS = Counter("tandem_adoptions_total", "Parked sequences that a worker took.")
TRANSFERRED_BYTES = Counter(
    "tandem_kv_transfer_bytes_total", "K/V fetched from other pools."
)
TRANSFER_SECONDS = Histogram(
    "tandem_kv_transfer_seconds",
    "One sequence's K/V, from asking its source to having it.",
    buckets=_LATENCY_BUCKETS,
)
FAILED_TRANSFERS = Counter(
    "tandem_kv_transfers_failed_total", "Transfers that ended before their end."
)
RECOVERIES = Counter(
    "tandem_recoveries_total", "Sequences taken from workers that were lost."
)
