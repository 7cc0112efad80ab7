"""How long a worker rests after a step, where its share is less than a core. Pure.

A step has one thread at least. Of two cores 20 % are less than that: so they are one
thread in two fifths of the time, and the other phase has both cores in the rest.
"""

from kv.operations import EVERYTHING, Part

LONGEST_SECONDS = 1.0


def rest_seconds(
    part: Part, cores: int, step_seconds: float, passed_seconds: float
) -> float:
    """After a step that took a core so long; with its waits and pauses, which are rest,
    `passed_seconds`. `cores` are the host's, 0 if none computes.

    Who has all of the machine with others takes turns by the kernel's scheduler.
    """
    if not cores or part.percent == EVERYTHING.percent:
        return 0.0
    share = cores * part.fraction
    if share >= 1.0:
        return 0.0
    return min(LONGEST_SECONDS, max(0.0, step_seconds / share - passed_seconds))
