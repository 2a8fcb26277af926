"""Which kernel headers are chosen, and how the C texts are put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes import headers, program
from probes.errors import ProbeError


def install(sources: Path, release: str, *, complete: bool = True) -> None:
    """Headers as Debian lays them out."""
    version = release.removesuffix("-amd64")
    common = sources / f"linux-headers-{version}-common"
    flavour = sources / f"linux-headers-{release}"
    (common / "include/linux").mkdir(parents=True)
    (flavour / "include/generated").mkdir(parents=True)
    (flavour / "Makefile").write_text(f"include /usr/src/{common.name}/Makefile\n")
    if complete:
        (common / "include/linux/kconfig.h").touch()


def test_the_newest_complete_headers_come_first(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-9-amd64")
    install(tmp_path, "6.1.0-56-amd64")
    install(tmp_path, "6.12.3-1-amd64", complete=False)
    found = headers.debian(tmp_path)
    assert [each.release for each in found] == ["6.1.0-56-amd64", "6.1.0-9-amd64"]
    assert found[0].source == tmp_path / "linux-headers-6.1.0-56-common"
    assert not found[0].running


def test_no_headers_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    for name in ("MODULES", "SOURCES", "ARCHIVE"):
        monkeypatch.setattr(headers, name, tmp_path / name)
    with pytest.raises(ProbeError, match="apt-get install linux-headers-amd64"):
        headers.find()


def test_the_users_choice_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    assert headers.find().build == tmp_path


def test_a_c_text_contains_what_it_includes() -> None:
    text = program.text_of(program.SOURCES / "sched.c")
    assert '#include "' not in text
    assert "BPF_HASH(slots" in text


def test_tracepoints_are_read_from_the_c_text() -> None:
    wanted = program.tracepoints_of(program.text_of(program.SOURCES / "migrate.c"))
    assert "sched:sched_migrate_task" in wanted
    assert "sched:sched_process_fork" in wanted


@pytest.mark.parametrize("name", ["sched", "block", "migrate"])
def test_programs_read_arguments_only(name: str) -> None:
    text = program.text_of(program.SOURCES / f"{name}.c")
    assert "bpf_probe_read" not in text
    assert "bpf_get_current_task" not in text
    assert "task_struct" not in text
