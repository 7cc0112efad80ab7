"""The division of a GPU's SMs, with a driver that has 132 of them and no GPU."""

# The driver names its functions.
# ruff: noqa: N802

from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from device.driver import DeviceError, Driver, NoDevice
from engine.partition import Lane, Lanes, Split, splits

SHARES = (10, 25, 50, 75, 90)


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_SUPPORTED = 801


def resource(sms: Sequence[int], granularity: int = 8) -> SimpleNamespace:
    """What the driver calls a resource; here it knows its SMs by number."""
    about = SimpleNamespace(
        smCount=len(sms),
        minSmPartitionSize=granularity,
        smCoscheduledAlignment=granularity,
    )
    return SimpleNamespace(sm=about, sms=list(sms))


class FakeBindings:
    """A device of so many SMs, which are given out from the first on."""

    CUresult = CUresult
    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM=1)
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM=1)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(self, num_sms: int = 132, granularity: int = 8) -> None:
        self.device = resource(range(num_sms), granularity)
        self.calls: list[str] = []
        self.alive: dict[int, Any] = {}  # contexts and streams: what each is made of
        self.failing: dict[str, Exception | CUresult] = {}
        self._handles = count(100)

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            match self.failing.get(name):
                case Exception() as error:
                    raise error
                case CUresult() as error:
                    return (error, None)
            return (CUresult.CUDA_SUCCESS, *getattr(self, f"_{name}")(*arguments))

        return call

    def sms_of(self, stream: int) -> set[int]:
        return set(self.alive[self.alive[stream]].sms)

    def _cuDeviceGet(self, ordinal: int) -> tuple[int]:
        return (ordinal,)

    def _cuDeviceGetDevResource(self, device: int, kind: int) -> tuple[Any]:
        return (self.device,)

    def _cuDevSmResourceSplitByCount(
        self, num_groups: int, whole: Any, flags: int, least: int
    ) -> tuple[Any, ...]:
        rounded = -(-least // 8) * 8
        group, rest = whole.sms[:rounded], whole.sms[rounded:]
        return [resource(group)], num_groups, resource(rest)

    def _cuDevResourceGenerateDesc(self, parts: list[Any], num: int) -> tuple[Any]:
        return (parts[0],)

    def _cuGreenCtxCreate(
        self, description: Any, device: int, flags: int
    ) -> tuple[int]:
        return (self._new(description),)

    def _cuGreenCtxStreamCreate(
        self, context: int, flags: int, priority: int
    ) -> tuple[int]:
        return (self._new(context),)

    def _cuStreamDestroy(self, stream: int) -> tuple[()]:
        assert self.alive.pop(stream) in self.alive, "its context is gone already"
        return ()

    def _cuGreenCtxDestroy(self, context: int) -> tuple[()]:
        del self.alive[context]
        return ()

    def _new(self, made_of: Any) -> int:
        handle = next(self._handles)
        self.alive[handle] = made_of
        return handle


def opened(bindings: FakeBindings, side: str, shares: Sequence[int] = SHARES) -> Lanes:
    """Lanes whose streams are handles; the whole device's is "whole"."""
    return Lanes.open(
        side,
        shares,
        find=lambda: Driver(bindings),
        whole=lambda: Lane("whole", 132),
        wrap=lambda handle: handle,
    )


def test_shares_become_multiples_of_eight_sms() -> None:
    """
    Prefill's part is the nearest multiple of eight, decode has what remains.
    """
    made = splits(132, SHARES)

    assert made == ((16, 116), (32, 100), (64, 68), (96, 36), (120, 12))


def test_a_percentage_takes_the_nearest_lane() -> None:
    """
    Each side goes by its own SMs, and all of them are nearest to a hundred percent.
    """
    prefill, decode = (
        opened(FakeBindings(132), side, [30, 50, 70]) for side in ("prefill", "decode")
    )

    taken = [
        (prefill.nearest(percent), decode.nearest(percent))
        for percent in (1, 30, 50, 60, 70, 100)
    ]

    assert taken == [(0, 2), (0, 2), (1, 1), (1, 1), (2, 0), (None, None)]
    assert opened(FakeBindings(132), "decode", []).nearest(30) is None


@pytest.mark.parametrize("num_sms", [16, 20, 78, 108, 114, 128, 132, 148])
def test_each_side_has_at_least_the_least_part(num_sms: int) -> None:
    """
    Whatever the share and the device, no side is without SMs and none is counted twice.
    """
    made = splits(num_sms, range(1, 100))

    for prefill_sms, decode_sms in made:
        assert prefill_sms % 8 == 0
        assert min(prefill_sms, decode_sms) >= 8
        assert prefill_sms + decode_sms == num_sms


def test_a_device_of_one_part_cannot_be_divided() -> None:
    """
    With fewer SMs than two parts need, the answer is a typed error.
    """
    with pytest.raises(DeviceError, match="15 SMs cannot be divided by 8"):
        splits(15, [50])


def test_the_two_sides_are_complementary() -> None:
    """
    Opened apart, as by two processes, the sides share no SM and leave none over.
    """
    one, other = FakeBindings(), FakeBindings()

    prefill, decode = opened(one, "prefill"), opened(other, "decode")

    for index in range(len(SHARES)):
        mine = one.sms_of(prefill.stream(index))
        yours = other.sms_of(decode.stream(index))
        assert not mine & yours
        assert mine | yours == set(range(132))


def test_what_is_in_force_is_what_the_driver_made() -> None:
    """
    A driver that rounds on its own decides; both sides then know the same split.
    """
    bindings = FakeBindings(granularity=4)  # announced, but it rounds to 8

    prefill = opened(bindings, "prefill", [9])
    decode = opened(bindings, "decode", [9])

    assert splits(132, [9], 4) == (Split(12, 120),)
    assert prefill.split(0) == decode.split(0) == Split(16, 116)


def test_each_stream_has_its_size() -> None:
    """
    Who fills a stream's SMs with programs knows how many there are, split or not.
    """
    lanes = opened(FakeBindings(), "decode", [25, 75])

    before = lanes.sizes
    lanes.close()

    assert before == {None: 132, 0: 100, 1: 36}
    assert lanes.sizes == {None: 132}


def test_a_driver_that_names_no_granularity_is_asked_for_eights() -> None:
    """
    Where the driver leaves the field empty, parts are multiples of eight SMs.
    """
    bindings = FakeBindings(granularity=0)

    lanes = opened(bindings, "prefill")

    assert [lanes.split(index) for index in range(len(SHARES))] == [
        *splits(132, SHARES)
    ]


def test_a_change_of_index_calls_nothing() -> None:
    """
    Streams are made once: taking another one asks the driver for nothing.
    """
    bindings = FakeBindings()
    lanes = opened(bindings, "decode")
    before = len(bindings.calls)

    taken = [lanes.stream(index) for index in (0, 3, None, 0)]

    assert taken[0] == taken[3] != taken[1]
    assert taken[2] == lanes.whole == "whole"
    assert len(bindings.calls) == before


def test_closing_gives_everything_back() -> None:
    """
    Each stream goes before its context, and afterwards only the whole device is left.
    """
    bindings = FakeBindings()
    lanes = opened(bindings, "prefill")

    lanes.close()

    assert not bindings.alive
    assert lanes.mode == "whole"
    assert lanes.stream(0) == "whole"


@pytest.mark.parametrize(
    ("function", "error", "reason"),
    [
        ("cuDeviceGetDevResource", CUresult.CUDA_ERROR_NOT_SUPPORTED, "NOT_SUPPORTED"),
        ("cuGreenCtxCreate", RuntimeError("cuGreenCtxCreate not found"), "not found"),
        ("cuGreenCtxStreamCreate", CUresult.CUDA_ERROR_NOT_SUPPORTED, "StreamCreate"),
    ],
)
def test_a_driver_without_green_contexts_leaves_the_device_whole(
    function: str, error: Exception | CUresult, reason: str
) -> None:
    """
    Every index is the whole device, the reason is told, and nothing half made stays.
    """
    bindings = FakeBindings()
    bindings.failing[function] = error

    lanes = opened(bindings, "prefill")

    assert lanes.mode == "whole"
    assert reason in lanes.reason
    assert lanes.stream(2) == "whole"
    assert lanes.split(2) is None
    assert not bindings.alive


def test_without_a_driver_the_device_is_whole() -> None:
    """
    Where the bindings are not installed, the reason says so and nothing is raised.
    """

    def missing() -> Driver:
        raise NoDevice("cuda-bindings is not installed")

    lanes = Lanes.open("decode", SHARES, find=missing, whole=lambda: Lane("whole", 132))

    assert lanes.reason == "cuda-bindings is not installed"
    assert lanes.stream(0) == "whole"


def test_without_shares_the_driver_is_not_asked() -> None:
    """
    No split is the default, and costs nothing.
    """
    bindings = FakeBindings()

    lanes = opened(bindings, "prefill", [])

    assert lanes.mode == "whole"
    assert not bindings.calls
