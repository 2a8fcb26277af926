"""The hot path of the orchestrator as machine code: the same sources, compiled by mypyc.

``make setup`` compiles (``python -m vcg.compiled``), the orchestrator uses it, nothing else does. What was compiled
lies in a directory named by a fingerprint of the sources and of the interpreter, so a source that has been changed
since is interpreted until it is compiled anew: stale code can't run. Where nothing was compiled (no ``make setup``, no
compiler) everything works the same, only that a round takes about three times as long; ``vcg doctor`` tells.

Why: settled, lent and minted in plain Python, a base window of nine dimensions took 70 to 80 us of a live orchestrator
(110 with all nine bursting), most of it because caches and translations are cold whenever it wakes. The limit is 60.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import vcg

MODULES = ("tokens", "rounds")
_PACKAGE = Path(__file__).parent
HOME = _PACKAGE.parent / ".build" / "compiled"


def fingerprint() -> str:
    """Of the sources as they are now, and of what could load them."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {sys.platform} {os.uname().machine}".encode())
    for name in MODULES:
        digest.update((_PACKAGE / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def is_built() -> bool:
    """Whether the sources as they are now have been compiled."""
    return (HOME / fingerprint()).is_dir()


def use() -> bool:
    """From now on, import the compiled modules, if there are any; whether there are.

    Raises:
        ImportError: they have been imported already.
    """
    if loaded := [name for name in MODULES if f"vcg.{name}" in sys.modules]:
        raise ImportError(f"vcg.{loaded[0]} has been imported already: too late to use it compiled")
    if not is_built():
        return False
    place = HOME / fingerprint()
    sys.path.insert(0, str(place))  # what the modules share lies there under a name of its own
    vcg.__path__.insert(0, str(place / "vcg"))
    return True


def build() -> Path:
    """Compile, unless that has been done; returns the directory.

    Raises:
        ImportError: mypyc or setuptools are missing.
        setuptools.errors.BaseError: the C compiler failed.
    """
    from mypyc.build import mypycify
    from setuptools import Distribution

    place = HOME / fingerprint()
    if place.is_dir():
        return place
    HOME.mkdir(parents=True, exist_ok=True)
    before = [path for path in HOME.iterdir() if path.is_dir()]
    with tempfile.TemporaryDirectory(dir=HOME.parent) as scratch:
        os.chdir(_PACKAGE.parent)  # modules are named by their path from here
        sources = [f"{_PACKAGE.name}/{name}.py" for name in MODULES]
        extensions = mypycify(["--config-file=", *sources], opt_level="3", debug_level="0", target_dir=f"{scratch}/c")
        distribution = Distribution({"name": "vcg-compiled", "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = f"{scratch}/lib", f"{scratch}/temp"
        command.ensure_finalized()
        command.run()
        Path(scratch, "lib").rename(place)
    for path in before:
        shutil.rmtree(path)
    return place


if __name__ == "__main__":
    build()
