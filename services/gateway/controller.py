"""Which shares the next window gets: semi-PD's Algorithm 1, completed. Pure and synchronous.

    only TTFT fails   prefill gets more, step by step, until the model says that it holds
    only TPOT fails   the same for decode
    both, or neither  nothing changes

(arXiv 2504.19867, section 5.) What the paper leaves open is decided here:

* A split is a real one: the two shares are 100 together. Only their ratio is in the model;
  beside the splits there is (100, 100), where both compete for everything.
* Nobody swings. A look takes enough requests, however many windows that is. A failure has
  to be seen at several looks in a row, of prompts in the first split at one less, and each
  change that takes the last one back makes the next wait twice as long. A phase gets no
  more than leaves the other, by its own curve, within its SLO; all but a tenth, where that
  curve is steep, only from the split before.
* It begins with a split in which streams have a part of their own, a small one, and goes
  back to it: beside (100, 100) every token waits for a chunk of prompts now and then.
* Nobody stays worse than (100, 100). Where a phase got more than in the first split, and the
  one that gave way fails too, in any window, or all is much worse than before, (100, 100)
  comes at once. That is a trial of it, as is made of a split that goes on failing: what was
  better remains. Trials, and splits after one that lost, come ever more rarely at that load.
* No split lives on credit. Where more streams begin than end, look after look, decode has
  less than it needs, and TPOT tells of that when the streams are there: (100, 100) comes
  before it fails, and what such a split was like meanwhile proves nothing.
* No split outlives its reason. When the load is another one, and the phase that the split
  was for would be well within its SLO without it, the first one comes back.
* Where phases compete nobody leaves in vain. A queue is in TTFT, so any more may be of use;
  decode gets a part only if prompts have room for that, and most streams a TPOT that they
  would keep: then the others wait for prompts, and the model knows nothing of that.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.evidence import ENOUGH, LEAST, Evidence, num_samples
from gateway.expectations import Expectations
from gateway.pressure import direction, is_better, is_steady, mean, piles_up
from gateway.rests import Rests
from gateway.splits import (
    FIRST,
    STEP,
    WHOLE,
    as_split,
    is_last,
    other_of,
    raised,
    who_gave_way,
)
from gateway.windows import Goals, Observed, Window
from protocol.messages import Phase, Reason, Shares

MAX_STEPS = 3  # of one change

SETTLING = 1  # windows after a change, with requests of before in them
SURE = 2  # looks in a row that have to fail before something changes
MOST_SURE = 16
CALM = 20  # looks in a row without a failure, after which less is needed again
DOUBTED, FAILING = 8, 4  # a split of whose so many latest looks so many failed
TRIAL = 4  # looks at a trial
PILING = 3  # looks in a row
NEAR = 0.3  # of TPOT's SLO: streams that pile up will break it soon
MUCH_WORSE = 1.5  # times the pressure under (100, 100)
LATEST = 4  # windows, whose mean is the present load
OVER = 3  # windows in a row in which a split is for nothing
ANOTHER = 3.0  # times as much load, or as little: what a split was for is over
EASY = 0.5  # of an SLO: it holds even if the phase becomes twice as slow
# Times as long as with all of the machine streams may take in the first split, and prompts
# at most, which had not all of it always. On half of it it is 1.6 (paper, fig. 10).
STREAMS_IN_FIRST, PROMPTS_IN_FIRST = (
    1.6 * 50 / FIRST.decode,
    1 + 0.6 * FIRST.decode / 50,
)
MANY = 75  # percentile, of few requests: one of these is always slow


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares for the next window, why, and what the model expects of them."""

    shares: Shares
    reason: Reason
    ttft: float | None = None
    tpot: float | None = None


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
        self._evidence = Evidence()
        self._model = Expectations()
        self._failing: Phase | None = None  # alone, in the latest windows
        self._num_failing = 0  # in a row
        self._num_holding = 0  # the same, of windows in which nothing fails
        self._spell: list[float] = []  # pressures since the last change
        self._flows: deque[tuple[int, int]] = deque(maxlen=PILING)  # the same
        self._whole: Sequence[float] = ()  # of the last spell of (100, 100)
        self._sure = SURE
        self._raised: Phase | None = None  # by the last change
        self._helped: Phase | None = None  # by the present split, or the one before
        self._trial: _Trial | None = None
        self._has_won = False  # the present split, its trial
        self._num_over = 0  # windows in a row in which a split was for nothing
        self._split_at = 0.0  # the load at the last change
        self._loads: deque[float] = deque(maxlen=LATEST)
        self._rests = Rests()

    def decide(self, window: Window) -> Verdict:
        """To be called once for each window, in order."""
        self._loads.append(window.load)
        if window.shares != self._in_force:  # a person's, or from before our time
            self._trial = self._helped = None
            self._changed(window.shares)
        self._age += 1
        latest = window.at(self._goals.percentile)
        if self._has_lost(self._beyond_doubt(window)):
            self._spell.append(latest.pressure(self._goals))
            return self._leave_split(latest)
        self._num_over = self._num_over + 1 if self._is_over(latest) else 0
        if self._trial is None and self._num_over >= OVER:
            return self._release(latest)
        if self._age <= SETTLING:
            return self._keep(latest, "settling")
        together = self._evidence.add(window)
        if together is None:
            return Verdict(window.shares, "too few requests")
        return self._look(together.at(self._goals.percentile))

    def _beyond_doubt(self, window: Window) -> Observed:
        """What even a single window tells."""
        count, percentile = num_samples(window), self._goals.percentile
        if count < LEAST:
            return Observed(window.shares, None, None, window.load)
        return window.at(percentile if count >= ENOUGH else min(MANY, percentile))

    def _has_lost(self, observed: Observed) -> bool:
        """Whether the phase that gave way fails; by more than (100, 100) did, where a split
        has won against that.
        """
        if self._gave_way not in self._failing_in(observed):
            return False
        return not self._has_won or observed.pressure(self._goals) > max(self._whole)

    def _look(self, observed: Observed) -> Verdict:
        """At enough requests."""
        self._model.remember(observed)
        self._spell.append(observed.pressure(self._goals))
        self._flows.append(observed.flow)
        self._rests.go_on(self._load)
        if self._trial is not None:
            return self._go_on_trying(observed, self._trial)
        if self._lives_on_credit(observed):
            return self._leave_split(observed, "streams pile up")
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
        # A queue grows while one waits, and what the first split left prompts was a guess.
        is_guess = observed.shares == FIRST and failing[0] == "prefill"
        if self._num_failing < self._sure - is_guess:
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
        if observed.shares == WHOLE and self._rests.is_at(self._load):
            return self._keep(observed, "a split was worse")
        best = self._aim(observed, phase)
        if best is None:
            return self._try_whole(observed) or self._keep(
                observed, "no split would do"
            )
        if self._raised not in (None, phase):
            self._doubt()
        self._raised = self._helped = phase
        reason: Reason = "ttft fails" if phase == "prefill" else "tpot fails"
        return self._change(observed, best, reason)

    def _aim(self, observed: Observed, phase: Phase) -> Shares | None:
        """The next split, if one would do."""
        if observed.shares == WHOLE and phase == "decode":
            return self._parted(observed)
        return self._stepped(observed, phase)

    def _stepped(self, observed: Observed, phase: Phase) -> Shares | None:
        """More for a phase, until it holds or the other one would not."""
        before = best = as_split(observed.shares)
        for step in range(1, MAX_STEPS + 1):
            shares = raised(before, phase, step * STEP)
            if shares is None or not self._allows(observed, phase, shares):
                break
            if is_last(shares) and step > 1:
                break
            best = shares
            if self._holds(observed, phase, shares):
                break
        return None if best == before else best

    def _parted(self, observed: Observed) -> Shares | None:
        """The first split, if prompts have room for it, and streams that wait for none."""
        goals, usual = self._goals, observed.usual_tpot
        ttft = (observed.ttft or 0.0) * PROMPTS_IN_FIRST
        is_enough = usual is not None and usual * STREAMS_IN_FIRST <= goals.tpot_seconds
        return FIRST if is_enough and ttft <= goals.ttft_seconds else None

    def _allows(self, observed: Observed, phase: Phase, shares: Shares) -> bool:
        return self._holds(observed, other_of(phase), shares)

    def _holds(
        self, observed: Observed, phase: Phase, shares: Shares, part: float = 1.0
    ) -> bool:
        """Whether a phase is expected to be within that part of its SLO."""
        ttft, tpot = self._model.of(observed, shares)
        if phase == "prefill":
            return ttft is None or ttft <= part * self._goals.ttft_seconds
        return tpot is None or tpot <= part * self._goals.tpot_seconds

    def _try_whole(self, observed: Observed) -> Verdict | None:
        """(100, 100), if the present split fails for long and gets no better."""
        latest = self._spell[-DOUBTED:]
        num_failing = sum(pressure > 1 for pressure in latest)
        if observed.shares == WHOLE or num_failing < FAILING:
            return None
        if self._rests.is_at(self._load) or direction(latest[-FAILING:]) < 0:
            return None
        self._trial = _Trial(observed.shares, latest)
        return self._change(observed, WHOLE, "a trial of 100/100")

    def _go_on_trying(self, observed: Observed, trial: _Trial) -> Verdict:
        if len(self._spell) < TRIAL:
            return self._keep(observed, "a trial of 100/100")
        self._trial = None
        self._rests.take(self._load)
        if is_better(self._spell, trial.pressures):
            return self._keep(observed, "a split was worse")
        verdict = self._change(observed, trial.split, "the split was better")
        self._has_won = True
        return verdict

    def _is_much_worse(self, observed: Observed) -> bool:
        """Than (100, 100) was, if that was steady."""
        latest, whole = self._spell[-SURE:], self._whole
        if observed.shares == WHOLE or len(latest) < SURE or len(whole) < SURE:
            return False
        is_worse = mean(latest) > MUCH_WORSE * max(whole)
        return min(latest) > 1 and is_worse and is_steady(whole)

    @property
    def _piles_up(self) -> bool:
        return len(self._flows) == PILING and piles_up(self._flows)

    def _lives_on_credit(self, observed: Observed) -> bool:
        """Whether a split's streams pile up, and TPOT is no longer far from its SLO."""
        is_near = (observed.tpot or 0.0) > NEAR * self._goals.tpot_seconds
        return observed.shares != WHOLE and is_near and self._piles_up

    @property
    def _gave_way(self) -> Phase | None:
        """The phase that has less for the other one's sake."""
        if self._in_force in (None, FIRST, WHOLE):
            return None
        return other_of(self._helped) if self._helped else who_gave_way(self._in_force)

    def _is_over(self, latest: Observed) -> bool:
        """Whether the load that asked for the split is gone, and that of before would do."""
        helped = self._gave_way and other_of(self._gave_way)
        if not helped or self._failing_in(latest):
            return False
        less, more = sorted((self._split_at, self._load))
        if more < ANOTHER * less:
            return False
        return self._holds(latest, helped, FIRST, EASY)

    def _release(self, latest: Observed) -> Verdict:
        """What was needed for a short time has to be asked for longer the next time."""
        if self._age < CALM:
            self._doubt()
        return self._change(latest, FIRST, "no longer needed")

    def _doubt(self) -> None:
        self._sure = min(2 * self._sure, MOST_SURE)

    def _leave_split(
        self, observed: Observed, reason: Reason = "a split was worse"
    ) -> Verdict:
        """At once; whether it was better after all is seen then, if it was not of late, and
        if it lasted.
        """
        self._doubt()
        if not (self._rests.is_at(self._load) or self._piles_up):
            self._trial = _Trial(observed.shares, self._spell[-DOUBTED:])
        self._rests.take(self._load)
        return self._change(observed, WHOLE, reason)

    def _keep(self, observed: Observed, reason: Reason) -> Verdict:
        return Verdict(
            observed.shares, reason, *self._model.of(observed, observed.shares)
        )

    def _change(self, observed: Observed, shares: Shares, reason: Reason) -> Verdict:
        self._changed(shares)
        return Verdict(shares, reason, *self._model.of(observed, shares))

    def _changed(self, shares: Shares) -> None:
        if self._in_force == WHOLE:
            self._whole = tuple(self._spell[-FAILING:])
        self._split_at = self._load
        self._in_force = shares
        self._has_won = False
        self._age = 0
        self._failing, self._num_failing = None, 0
        self._spell.clear()
        self._flows.clear()
        self._evidence.clear()

    def _count(self, phase: Phase) -> None:
        self._num_failing = self._num_failing + 1 if self._failing == phase else 1
        self._failing = phase

    @property
    def _load(self) -> float:
        """At present; that of a single window is mostly chance."""
        return mean(self._loads)
