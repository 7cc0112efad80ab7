"""What a device can do, and how much of it a step of serving gets. Knows no model.

Peak rates and memory are the vendors' (data sheets of A100 80 GB and 40 GB SXM, H100 SXM,
H200 SXM; dense bfloat16). The rest, for GPUs:

* `compute_efficiency`, `memory_efficiency`, `step_seconds`: for the H200 ours, measured
  (bench/results/2026-11-27-gpu-h200.md: a prompt of 2,048 tokens of the 8B shape in
  49.7 ms is 63 % of the peak; decode of 1, 8 and 32 in 4.3, 5.1 and 5.9 ms fit 80 % of the
  rate of memory and half a millisecond). Assumed to be the same on A100 and H100.
* `memory_elasticity`: how a step that waits for memory slows down on part of the SMs. On an
  H200 a decode step took 1.33, 1.21, 1.09 and 1.06 times as long on 24, 36, 48 and 73 % of
  its SMs (sglang-omni, pull request 1635): 0.11 in `1 + e (1 / x - 1)`. Assumed elsewhere.
* `compute_elasticity`: 1, as in semi-PD (arXiv 2504.19867, section 5: l_x = 100 / x l_100).
* `contention`: how much longer a step takes for sharing memory and caches with one of the
  other phase. MuxWise (arXiv 2504.14489) saw up to 0.2 on A100 and 0.3 on H100; on an H200
  two products on halves of the SMs lost 0.22 by each other (our results).
* `door_seconds`, `request_seconds`, `handoff_seconds`: of the processes around the engine,
  the first of a gateway that takes one request after the other. Measured on CPUs only,
  where these processes share cores with the steps (see pool.py); for GPUs assumed.
"""

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from mesh.errors import ConfigurationError


class Device(BaseModel, frozen=True, extra="forbid"):
    """Rates are per second and of the whole device."""

    name: str
    peak_flops: float = Field(gt=0)
    peak_bytes: float = Field(gt=0)
    memory_bytes: float = Field(gt=0)
    compute_efficiency: float = Field(default=0.63, gt=0)
    memory_efficiency: float = Field(default=0.80, gt=0)
    compute_elasticity: float = Field(default=1.0, ge=0)
    memory_elasticity: float = Field(default=0.11, ge=0)
    contention: float = Field(default=0.2, ge=0)
    step_seconds: float = Field(default=0.0005, ge=0)  # of each step, whatever is in it
    sequence_seconds: float = Field(default=0.0, ge=0)  # of each sequence in a step
    handoff_seconds: float = Field(default=0.002, ge=0)  # from prefill to decode
    door_seconds: float = Field(default=0.0, ge=0)  # of each request, one at a time
    request_seconds: float = Field(default=0.003, ge=0)  # before a worker has it
    num_cores: int = Field(default=0, ge=0)  # that steps take whole; 0: a GPU's SMs


GB = 1e9
DEVICES = {
    device.name: device
    for device in (
        Device(
            name="a100-40g",
            peak_flops=312e12,
            peak_bytes=1555 * GB,
            memory_bytes=40 * GB,
        ),
        Device(
            name="a100-80g",
            peak_flops=312e12,
            peak_bytes=2039 * GB,
            memory_bytes=80 * GB,
        ),
        Device(
            name="h100",
            peak_flops=989e12,
            peak_bytes=3350 * GB,
            memory_bytes=80 * GB,
            contention=0.3,
        ),
        Device(
            name="h200",
            peak_flops=989e12,
            peak_bytes=4800 * GB,
            memory_bytes=141 * GB,
            contention=0.22,
        ),
    )
}


def device_of(name: str) -> Device:
    """A known one, or one that `make bench-calibrate` wrote to a JSON file."""
    if name in DEVICES:
        return DEVICES[name]
    try:
        return Device.model_validate_json(Path(name).read_text())
    except OSError:
        names = ", ".join(DEVICES)
        raise ConfigurationError(f"{name}: no file, and none of {names}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise ConfigurationError(f"{name}: {where}: {wrong['msg']}") from None
