"""Burn a share of the credit of every window.

Arguments: ``share`` (0.5), of the token's budget.
"""

from __future__ import annotations

from vcg.dimension import Dimension, Window


def burn(window: Window, share: float) -> None:
    """Spin until this share of the window's budget is used, or its token has expired."""
    target_ns = int(window.token.budget_ns * share)
    while window.used_ns() < target_ns and not window.expired:
        pass


def run(dimension: Dimension) -> None:
    share = float(dimension.args.get("share", 0.5))
    for window in dimension.windows():
        burn(window, share)
