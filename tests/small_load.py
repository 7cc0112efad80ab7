"""A small plan of `tandem bench`, for tests that drive one."""

from bench.benchmark import Plan
from bench.measures import SLO
from bench.workload import Scaling

SMALL = Plan(
    model="",
    num_requests=4,
    num_input=20,
    num_output=30,
    num_clients=2,
    rate=0.0,
    trace=None,
    scaling=Scaling(),
    num_warmups=1,
    num_repeats=1,
    vocab_size=500,
    is_plain=False,
    seed=0,
    answer_seconds=30.0,
    slo=SLO(),
)
