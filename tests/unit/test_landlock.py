"""Which rights each version of Landlock lets us handle."""

from __future__ import annotations

from itertools import pairwise

from vcg.linux.landlock import RENAMES_SINCE, SCOPES_SINCE, ruleset_of


def test_each_version_handles_what_the_one_before_did_and_maybe_more() -> None:
    for older, newer in pairwise(ruleset_of(version) for version in range(9)):
        assert all(rights & more == rights for rights, more in zip(older, newer, strict=True))


def test_scopes_and_tcp_come_with_their_versions() -> None:
    assert ruleset_of(0) == (0, 0, 0)
    assert ruleset_of(RENAMES_SINCE)[1:] == (0, 0)
    assert ruleset_of(4)[1:] == (0b11, 0)
    assert ruleset_of(SCOPES_SINCE)[1:] == (0b11, 0b11)
