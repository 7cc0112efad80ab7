"""The shares that the controller chooses among: 100 together in whole steps, or (100, 100)."""

from protocol.messages import Phase, Shares

WHOLE = Shares(prefill=100, decode=100)  # both may have everything, and compete
# What it begins with: streams have a part of their own, and prompts what few of them leave.
FIRST = Shares(prefill=70, decode=30)
STEP = 10  # percent
LEAST = 10  # percent, of either phase


def other_of(phase: Phase) -> Phase:
    return "decode" if phase == "prefill" else "prefill"


def share_of(shares: Shares, phase: Phase) -> float:
    """Of one phase, 0 to 1, scaled so that both are 1 together."""
    share: int = getattr(shares, phase)
    return share / (shares.prefill + shares.decode)


def as_split(shares: Shares) -> Shares:
    """The split of the same ratio, in whole steps."""
    prefill = round(100 * share_of(shares, "prefill") / STEP) * STEP
    prefill = min(max(prefill, LEAST), 100 - LEAST)
    return Shares(prefill=prefill, decode=100 - prefill)


def raised(split: Shares, phase: Phase, percent: int) -> Shares | None:
    """So much more for one phase; None if too little were left for the other."""
    sign = 1 if phase == "prefill" else -1
    prefill = split.prefill + sign * percent
    if not LEAST <= prefill <= 100 - LEAST:
        return None
    return Shares(prefill=prefill, decode=100 - prefill)


def is_last(split: Shares) -> bool:
    """Whether one of the phases can give nothing more."""
    return min(split.prefill, split.decode) == LEAST


def who_gave_way(shares: Shares) -> Phase | None:
    """The phase that has less than the other one, if one has."""
    if shares.prefill == shares.decode:
        return None
    return "prefill" if shares.prefill < shares.decode else "decode"
