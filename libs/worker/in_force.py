"""What a worker really runs on, as its engine and its device say it."""

from typing import TYPE_CHECKING

from device.mps import Mps
from mesh import metrics
from protocol.messages import InForce
from worker.settings import WorkerSettings

if TYPE_CHECKING:  # they need torch
    from engine.cuda_engine import CudaEngine
    from engine.partition import Lanes
    from engine.transformer import TransformerEngine


def of_counting(settings: WorkerSettings) -> InForce:
    return InForce(
        device=settings.device,
        dtype=settings.dtype,
        without_replay="it only counts",
    )


def on_cpu(settings: WorkerSettings, engine: "TransformerEngine") -> InForce:
    """Once the engine is warm: its first steps show whether tapes hold them."""
    return InForce(
        device="cpu",
        dtype=settings.dtype,
        quantization=settings.quantization,
        threads=engine.max_threads,
        replay="none" if engine.without_tapes else "tapes",
        without_replay=engine.without_tapes,
    )


def on_gpu(
    settings: WorkerSettings,
    engine: "CudaEngine",
    lanes: "Lanes",
    why_whole: str,
    mps: Mps,
) -> InForce:
    return InForce(
        device="cuda",
        dtype=settings.dtype,
        quantization=settings.quantization,
        lane_sms=tuple(lanes.sizes.values()),
        without_split=why_whole,
        without_mps=mps.reason,
        mps_percent=mps.percent,
        replay="none" if engine.without_graphs else "graphs",
        without_replay=engine.without_graphs,
    )


def show(in_force: InForce) -> None:
    """To Prometheus, in place of what was in force before."""
    metrics.COMPUTE.clear()
    metrics.COMPUTE.labels(
        device=in_force.device,
        dtype=in_force.dtype,
        quantization=in_force.quantization,
        threads=in_force.threads,
        lane_sms="/".join(map(str, in_force.lane_sms)),
        mps="no" if in_force.without_mps or not in_force.lane_sms else "yes",
        replay=in_force.replay,
    ).set(1)
