"""What changes over a run, as functions of the step and the total number of steps."""

from __future__ import annotations

import math


def cosine(step: int, *, first: float, last: float, steps: int) -> float:
    """Move from first (step 0) to last (step steps - 1) along half a cosine.

    Examples
    --------
    >>> [round(cosine(step, first=0.9, last=1.0, steps=5), 3) for step in (0, 2, 4)]
    [0.9, 0.95, 1.0]
    """
    done = step / (steps - 1) if steps > 1 else 1.0
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int) -> float:
    """Return the rate of one step: linear warm-up, then half a cosine down to zero.

    Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts.

    Parameters
    ----------
    step : int
        From 0 to steps - 1.
    peak : float
        Reached at the end of the warm-up.
    steps, warmup_steps : int
        Length of the run, and of the warm-up inside it.

    Examples
    --------
    >>> [learning_rate(s, peak=1.0, steps=6, warmup_steps=2) for s in (0, 1, 2, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
