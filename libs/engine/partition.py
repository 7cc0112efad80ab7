"""The SMs of one GPU, divided between prefill and decode; a stream over either part.

Both processes make the same split, by the same calls, and each takes its side of it:

    the device ── cuDevSmResourceSplitByCount(1 group) ──┬── the group      prefill
                                                         └── the remainder  decode

Prefill has the group because only the group keeps the hardware's clusters whole, which its
large matrix products use. Each part is a green context (CUDA driver API, "Green Contexts");
kernels and captured graphs of its stream stay on its SMs. Between processes the two sides
run at the same time only under MPS. When the split changes is not decided here.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch

from device.driver import DEVICE, DeviceError, Driver, driver

Side = Literal["prefill", "decode"]
Wrap = Callable[[int], torch.cuda.Stream]

GRANULARITY = 8  # SMs: least part, and step between parts, of compute capability 9.0


class Split(NamedTuple):
    """How many SMs each side has."""

    prefill_sms: int
    decode_sms: int


class Lane(NamedTuple):
    """A stream, and how many SMs its kernels run on."""

    stream: torch.cuda.Stream
    num_sms: int
    split: Split | None = None  # that it is a side of; None: it has the whole device


def splits(
    num_sms: int, shares: Sequence[int], granularity: int = GRANULARITY
) -> tuple[Split, ...]:
    """What each share becomes: percent of the SMs, for prefill.

    Prefill's part is the nearest multiple of `granularity`; each side has that many SMs at
    least. Raises DeviceError for a device too small to be divided.
    """
    assert all(0 < each < 100 for each in shares), "a share is 1 to 99 percent"
    if num_sms < 2 * granularity:
        raise DeviceError(f"{num_sms} SMs cannot be divided by {granularity}")
    most = num_sms // granularity - 1
    counts = [round(num_sms * each / 100 / granularity) for each in shares]
    parts = [min(max(count, 1), most) * granularity for count in counts]
    return tuple(Split(part, num_sms - part) for part in parts)


def whole_device() -> Lane:
    """A stream of torch's over all SMs."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return Lane(stream, torch.cuda.get_device_properties().multi_processor_count)


def wrapped(handle: int) -> torch.cuda.Stream:
    """The driver's stream of that handle, for torch."""
    return torch.cuda.ExternalStream(handle)  # type: ignore[no-untyped-call]


class Lanes:
    """The streams of one side, made once and changed by index between two steps.

    A step on another stream than the step before first waits for it
    (`stream.wait_stream(before)`): streams are in no order among each other.
    """

    def __init__(
        self, whole: Lane, lanes: Sequence[Lane], leaving: ExitStack, reason: str = ""
    ) -> None:
        """`leaving` gives back what the lanes are made of."""
        self.reason = reason  # why there are no lanes; empty when there are
        self._whole = whole
        self._lanes = tuple(lanes)
        self._leaving = leaving

    @classmethod
    def open(
        cls,
        side: Side,
        shares: Sequence[int],
        *,
        find: Callable[[], Driver] = driver,
        whole: Callable[[], Lane] = whole_device,
        wrap: Wrap = wrapped,
    ) -> "Lanes":
        """A lane for each share: percent of the SMs, for prefill.

        Without green contexts there are none, `mode` is "whole" and `reason` says why.
        """
        # First: it makes the device's primary context, which green contexts build on.
        everything = whole()
        if not shares:
            return cls(everything, [], ExitStack(), "no split is asked for")
        try:
            with ExitStack() as leaving:
                lanes = _lanes(find(), side, shares, wrap, leaving)
                return cls(everything, lanes, leaving.pop_all())
        # The bindings' error for a function that an old driver lacks is a RuntimeError.
        except (DeviceError, RuntimeError) as error:
            return cls(everything, [], ExitStack(), str(error))

    def close(self) -> None:
        """Give the lanes back; nothing may be running on them."""
        self._lanes = ()
        self._leaving.close()

    @property
    def mode(self) -> Literal["green", "whole"]:
        return "green" if self._lanes else "whole"

    @property
    def whole(self) -> torch.cuda.Stream:
        """The stream over all SMs, on which the other side's may be in use."""
        return self._whole.stream

    @property
    def sizes(self) -> dict[int | None, int]:
        """The SMs of each stream that there is; None is the whole device's."""
        sizes: dict[int | None, int] = {None: self._whole.num_sms}
        return sizes | {index: lane.num_sms for index, lane in enumerate(self._lanes)}

    def nearest(self, percent: int) -> int | None:
        """Of the streams that there are, whose SMs are nearest to that share of all."""
        sizes = self.sizes
        wanted = percent * self._whole.num_sms / 100
        return min(sizes, key=lambda index: abs(sizes[index] - wanted))

    def stream(self, index: int | None) -> torch.cuda.Stream:
        """The lane of that split; `whole` for None, and always where nothing is split."""
        return self._lane(index).stream

    def split(self, index: int | None) -> Split | None:
        """What the driver made of that share; None where the device is whole."""
        return self._lane(index).split

    def _lane(self, index: int | None) -> Lane:
        if index is None or not self._lanes:
            return self._whole
        return self._lanes[index]


def _lanes(
    gpu: Driver, side: Side, shares: Sequence[int], wrap: Wrap, leaving: ExitStack
) -> list[Lane]:
    device = gpu.call("cuDeviceGet", DEVICE)
    kind = gpu.bindings.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    sms = gpu.call("cuDeviceGetDevResource", device, kind)
    lanes = []
    for wanted in splits(sms.sm.smCount, shares, _granularity(sms)):
        parts = _divide(gpu, sms, wanted)
        part = parts[0] if side == "prefill" else parts[1]
        stream = wrap(_stream_over(gpu, device, part, leaving))
        split = Split(*(each.sm.smCount for each in parts))
        lanes.append(Lane(stream, part.sm.smCount, split))
    return lanes


def _granularity(sms: Any) -> int:
    """Drivers before CUDA 13 leave these fields empty."""
    return max(sms.sm.minSmPartitionSize, sms.sm.smCoscheduledAlignment) or GRANULARITY


def _divide(gpu: Driver, sms: Any, wanted: Split) -> tuple[Any, Any]:
    """Prefill's SMs and decode's: the same ones wherever this is called."""
    groups, _, remainder = gpu.call(
        "cuDevSmResourceSplitByCount", 1, sms, 0, wanted.prefill_sms
    )
    if not groups or not remainder.sm.smCount:
        raise DeviceError(f"the driver does not divide the SMs as {tuple(wanted)}")
    return groups[0], remainder


def _stream_over(gpu: Driver, device: Any, sms: Any, leaving: ExitStack) -> int:
    """The handle of a stream whose kernels run on these SMs only."""
    description = gpu.call("cuDevResourceGenerateDesc", [sms], 1)
    flags = gpu.bindings.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    context = gpu.call("cuGreenCtxCreate", description, device, flags)
    leaving.callback(gpu.call, "cuGreenCtxDestroy", context)
    flags = gpu.bindings.CUstream_flags.CU_STREAM_NON_BLOCKING
    stream = gpu.call("cuGreenCtxStreamCreate", context, flags, 0)
    leaving.callback(gpu.call, "cuStreamDestroy", stream)
    return int(stream)
