"""Sweeps over testbeds: trials in randomised blocks, results as data frames, statistics, plots and a report.

``load(path)`` reads a results directory; everything else is reached through the command ``vcg sweep`` and
``vcg report``. Importing the package is cheap on purpose: the reference thread (``python -m experiments.reference``)
imports it and must stay a process of the standard library alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.store import Results

__all__ = ["load"]


def load(path: str | Path) -> Results:
    """Open a results directory that ``vcg sweep run`` wrote.

    Returns:
        The frames ``windows``, ``histograms``, ``counters``, ``reference``, ``trials``, ``summary``, and ``metadata``.

    Raises:
        experiments.store.ResultsError: there are no results in that directory, or they are of another format.
    """
    from experiments.store import Results

    return Results(Path(path))
