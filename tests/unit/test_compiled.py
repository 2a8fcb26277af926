"""The machine code of the ledger and the rounds: used only while it is that of the sources, and under the same laws."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vcg
from vcg import compiled

ROOT = Path(vcg.__file__).parent.parent
UNDER_LAWS = ("test_tokens.py", "test_orchestrator_laws.py")


def run(code: str, cwd: Path = ROOT) -> str:
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(cwd)!r}); {code}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and what was compiled of them, in another place."""
    shutil.copytree(ROOT / "vcg", tmp_path / "vcg", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(compiled.HOME, tmp_path / ".build" / "compiled")
    return tmp_path


def where_from(place: Path) -> list[str]:
    told = (
        "print(compiled.use()); import vcg.tokens, vcg.rounds; print(vcg.tokens.__file__); print(vcg.rounds.__file__)"
    )
    return run(f"from vcg import compiled; {told}", place).split()


def test_set_up_has_compiled_the_sources_as_they_are() -> None:
    assert compiled.is_built(), "run: make setup"
    used, *files = where_from(ROOT)
    assert used == "True"
    assert all(file.startswith(str(compiled.HOME)) and file.endswith(".so") for file in files)


@pytest.mark.parametrize("name", compiled.MODULES)
def test_a_source_that_has_changed_since_is_interpreted(copy: Path, name: str) -> None:
    assert where_from(copy)[0] == "True"
    source = copy / "vcg" / f"{name}.py"
    source.write_text(source.read_text() + "\n# changed\n")
    used, *files = where_from(copy)
    assert used == "False"
    assert files == [str(copy / "vcg" / f"{module}.py") for module in compiled.MODULES]


def test_what_has_been_imported_already_is_not_exchanged() -> None:
    said = run(
        "import vcg.tokens\nfrom vcg import compiled\ntry: compiled.use()\nexcept ImportError as error: print(error)"
    )
    assert said.startswith("vcg.tokens has been imported already")


def test_machine_code_is_under_the_same_laws() -> None:
    files = [str(ROOT / "tests" / "unit" / name) for name in UNDER_LAWS]
    arguments = ["-q", "-p", "no:cacheprovider", *files]
    said = run(
        "from vcg import compiled; assert compiled.use(); import vcg.tokens; assert vcg.tokens.__file__[-3:] == '.so'; "
        f"import pytest; code = pytest.main({arguments!r}); sys.exit(code)"
    )
    assert " passed" in said
