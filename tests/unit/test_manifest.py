"""The facts that are stored with a run, as far as they can be told without a host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from experiments import manifest


def test_a_changed_source_makes_a_tree_dirty_and_a_new_result_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    def is_dirty() -> bool:
        found = manifest.commit()
        assert found
        return bool(found["dirty"])

    monkeypatch.setattr(manifest, "_TREE", tmp_path)
    source, result = tmp_path / "source.py", tmp_path / "results" / "bench" / "up.json"
    source.write_text("1\n")
    git("init", "--quiet")
    git("add", "source.py")
    git("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "t")
    assert not is_dirty()
    result.parent.mkdir(parents=True)
    result.write_text("{}\n")
    assert not is_dirty()
    source.write_text("2\n")
    assert is_dirty()
