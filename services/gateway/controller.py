"""Which shares the next window gets: semi-PD's Algorithm 1, completed. Pure and synchronous.

    only TTFT fails   prefill gets more, step by step, until the model says that it holds
    only TPOT fails   the same for decode
    both, or neither  nothing changes

(arXiv 2504.19867, section 5.) What the paper leaves open is decided here:

* A split is a real one: the two shares are 100 together. Only their ratio is in the model;
  beside the splits there is (100, 100), where both compete for everything.
* Nobody swings. A failure has to be seen in several windows in a row, a change is given
  windows to show what it does, and each change that takes the last one back makes the next
  wait twice as long. A phase gets no more than leaves the other, by its own curve, within
  its SLO.
* Nobody stays worse than (100, 100). That is left for a phase that fails alone: when the
  one that gave way fails too, or all is much worse than before, it comes back at once. A
  split that goes on failing is tried against it, and what was better remains. Trials, and
  splits after one that lost, come ever more rarely while the load is the same.
* Where phases compete nobody leaves in vain. A queue is in TTFT, so any more may be of use;
  of TPOT the model says all, and decode gets more only if it then holds.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.latency_model import Curve, Point, fit
from gateway.pressure import direction, is_better, is_steady, mean
from gateway.splits import STEP, WHOLE, as_split, raised, share_of, who_gave_way
from gateway.windows import Goals, Observed, Window
from protocol.messages import Phase, Reason, Shares

MAX_STEPS = 3  # of one change

LEAST_SAMPLES = 4  # of a window; fewer say nothing about a percentile
MAX_WINDOWS = 24  # that are remembered
SETTLING = 1  # windows after a change, with requests of before in them
SURE = 2  # windows in a row that have to fail before something changes
MOST_SURE = 16
CALM = 20  # windows in a row without a failure, after which less is needed again
DOUBTED, FAILING = 8, 4  # a split of whose so many latest windows so many failed
TRIAL = 4  # settled windows of a trial
MUCH_WORSE = 1.5  # times the pressure under (100, 100)
FIRST_REST = 8  # windows after a trial until the next one
LONGEST_REST = 64
LATEST = 4  # windows, whose mean is the present load
OTHER_LOAD = 1.5  # times as much is another load

# What part of a latency does not depend on the share, until windows tell (paper, fig. 10).
CONSTANT_OF_TTFT = 0.1
CONSTANT_OF_TPOT = 0.4


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares for the next window, why, and what the model expects of them."""

    shares: Shares
    reason: Reason
    ttft: float | None = None
    tpot: float | None = None


@dataclass(slots=True)
class _Rest:
    """Windows until the next trial, or until the next split after one that lost."""

    num_windows: int = 0
    next_one: int = FIRST_REST

    def take(self) -> None:
        """Each is twice as long as the one before."""
        self.num_windows = self.next_one
        self.next_one = min(2 * self.next_one, LONGEST_REST)


@dataclass(frozen=True, slots=True)
class _Trial:
    """(100, 100) against a split."""

    split: Shares
    pressures: Sequence[float]  # of the split


class Controller:
    """Remembers what it saw of one pool."""

    def __init__(self, goals: Goals) -> None:
        self._goals = goals
        self._in_force: Shares | None = None
        self._age = 0  # windows since the last change
        self._seen: deque[Observed] = deque(maxlen=MAX_WINDOWS)
        self._failing: Phase | None = None  # alone, in the latest windows
        self._num_failing = 0  # in a row
        self._num_holding = 0  # the same, of windows in which nothing fails
        self._spell: list[float] = []  # pressures since the last change
        self._whole: Sequence[float] = ()  # of the last spell of (100, 100)
        self._sure = SURE
        self._raised: Phase | None = None  # by the last change
        self._trial: _Trial | None = None
        self._loads: deque[float] = deque(maxlen=LATEST)
        # Of each load, since what was learnt at another one proves nothing.
        self._rests: defaultdict[int, _Rest] = defaultdict(_Rest)

    def decide(self, window: Window) -> Verdict:
        """To be called once for each window, in order."""
        if window.shares != self._in_force:  # a person's, or from before our time
            self._trial = None
            self._changed(window.shares)
        self._age += 1
        if max(len(window.ttfts), len(window.tpots)) < LEAST_SAMPLES:
            return Verdict(window.shares, "too few requests")
        observed = window.at(self._goals.percentile)
        self._loads.append(observed.load)
        if who_gave_way(observed.shares) in self._failing_in(observed):
            return self._leave_split(observed)
        if self._age <= SETTLING:
            return self._keep(observed, "settling")
        self._seen.append(observed)
        self._spell.append(observed.pressure(self._goals))
        self._rest.num_windows = max(0, self._rest.num_windows - 1)
        if self._trial is not None:
            return self._go_on_trying(observed, self._trial)
        if self._is_much_worse(observed):
            return self._leave_split(observed)
        return self._judge(observed)

    def _judge(self, observed: Observed) -> Verdict:
        """Algorithm 1."""
        failing = self._failing_in(observed)
        if not failing:
            self._failing, self._num_failing = None, 0
            self._num_holding += 1
            if self._num_holding % CALM == 0:
                self._sure = max(SURE, self._sure // 2)
            return self._keep(observed, "both hold")
        self._num_holding = 0
        if len(failing) == 2:
            self._failing, self._num_failing = None, 0
            return self._try_whole(observed) or self._keep(observed, "both fail")
        self._count(failing[0])
        if self._num_failing < self._sure:
            return self._try_whole(observed) or self._keep(observed, "not sure yet")
        return self._raise(observed, failing[0])

    def _failing_in(self, observed: Observed) -> list[Phase]:
        failing: list[Phase] = []
        if observed.ttft is not None and observed.ttft > self._goals.ttft_seconds:
            failing.append("prefill")
        if observed.tpot is not None and observed.tpot > self._goals.tpot_seconds:
            failing.append("decode")
        return failing

    def _raise(self, observed: Observed, phase: Phase) -> Verdict:
        """More for one phase, as far as its SLO needs and the other's allows."""
        if observed.shares == WHOLE and self._rest.num_windows:
            return self._keep(observed, "a split was worse")
        before = as_split(observed.shares)
        best = before
        for step in range(1, MAX_STEPS + 1):
            shares = raised(before, phase, step * STEP)
            if shares is None or not self._allows(observed, phase, shares):
                break
            best = shares
            if self._holds(observed, phase, shares):
                break
        if best == before or self._is_vain(observed, phase, best):
            return self._try_whole(observed) or self._keep(
                observed, "no split would do"
            )
        if self._raised not in (None, phase):
            self._sure = min(2 * self._sure, MOST_SURE)
        self._raised = phase
        reason: Reason = "ttft fails" if phase == "prefill" else "tpot fails"
        return self._change(observed, best, reason)

    def _allows(self, observed: Observed, phase: Phase, shares: Shares) -> bool:
        other: Phase = "decode" if phase == "prefill" else "prefill"
        return self._holds(observed, other, shares)

    def _holds(self, observed: Observed, phase: Phase, shares: Shares) -> bool:
        ttft, tpot = self._expected(observed, shares)
        if phase == "prefill":
            return ttft is None or ttft <= self._goals.ttft_seconds
        return tpot is None or tpot <= self._goals.tpot_seconds

    def _is_vain(self, observed: Observed, phase: Phase, shares: Shares) -> bool:
        if observed.shares != WHOLE or phase == "prefill":
            return False
        return not self._holds(observed, phase, shares)

    def _try_whole(self, observed: Observed) -> Verdict | None:
        """(100, 100), if the present split fails for long and gets no better."""
        latest = self._spell[-DOUBTED:]
        num_failing = sum(pressure > 1 for pressure in latest)
        if observed.shares == WHOLE or num_failing < FAILING:
            return None
        if self._rest.num_windows or direction(latest[-FAILING:]) < 0:
            return None
        self._trial = _Trial(observed.shares, latest)
        return self._change(observed, WHOLE, "a trial of 100/100")

    def _go_on_trying(self, observed: Observed, trial: _Trial) -> Verdict:
        if len(self._spell) < TRIAL:
            return self._keep(observed, "a trial of 100/100")
        self._trial = None
        self._rest.take()
        if is_better(self._spell, trial.pressures):
            return self._keep(observed, "a split was worse")
        return self._change(observed, trial.split, "the split was better")

    def _is_much_worse(self, observed: Observed) -> bool:
        """Than (100, 100) was, if that was steady."""
        latest, whole = self._spell[-SURE:], self._whole
        if observed.shares == WHOLE or len(latest) < SURE or len(whole) < SURE:
            return False
        is_worse = mean(latest) > MUCH_WORSE * max(whole)
        return min(latest) > 1 and is_worse and is_steady(whole)

    def _leave_split(self, observed: Observed) -> Verdict:
        self._rest.take()
        return self._change(observed, WHOLE, "a split was worse")

    def _keep(self, observed: Observed, reason: Reason) -> Verdict:
        return Verdict(
            observed.shares, reason, *self._expected(observed, observed.shares)
        )

    def _change(self, observed: Observed, shares: Shares, reason: Reason) -> Verdict:
        self._changed(shares)
        return Verdict(shares, reason, *self._expected(observed, shares))

    def _changed(self, shares: Shares) -> None:
        if self._in_force == WHOLE:
            self._whole = tuple(self._spell[-FAILING:])
        self._in_force = shares
        self._age = 0
        self._failing, self._num_failing = None, 0
        self._spell.clear()

    def _count(self, phase: Phase) -> None:
        self._num_failing = self._num_failing + 1 if self._failing == phase else 1
        self._failing = phase

    @property
    def _rest(self) -> _Rest:
        """At the present load; that of a single window is mostly chance."""
        load = max(1.0, mean(self._loads))
        return self._rests[round(math.log(load, OTHER_LOAD))]

    def _expected(
        self, observed: Observed, shares: Shares
    ) -> tuple[float | None, float | None]:
        """TTFT and TPOT at those shares with the present load, as the model has them.

        The curves give ratios; they start from what was just seen.
        """
        windows = [*(w for w in self._seen if w is not observed), observed]
        ttfts = [
            Point(share_of(w.shares, "prefill"), w.load, w.ttft)
            for w in windows
            if w.ttft is not None
        ]
        tpots = [
            Point(share_of(w.shares, "decode"), 0.0, w.tpot)
            for w in windows
            if w.tpot is not None
        ]
        return (
            _scaled(ttfts, CONSTANT_OF_TTFT, observed.ttft, shares, "prefill"),
            _scaled(tpots, CONSTANT_OF_TPOT, observed.tpot, shares, "decode"),
        )


def _scaled(
    points: list[Point],
    constant: float,
    seen: float | None,
    shares: Shares,
    phase: Phase,
) -> float | None:
    if seen is None:
        return None
    curve: Curve = fit(points, constant)
    latest = points[-1]
    now = curve(latest.share, latest.load)
    then = curve(share_of(shares, phase), latest.load)
    return seen * then / now if now > 0 else seen
