"""Building the C programs that stand beside the benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vcg.errors import HostError

_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


def build(name: str, place: Path, *flags: str) -> Path:
    """Compile ``NAME.c`` of this package into a directory; returns the program.

    Args:
        flags: further ones for gcc.

    Raises:
        HostError: there is no gcc, or it refuses.
    """
    source, program = Path(__file__).with_name(f"{name}.c"), place / name
    try:
        subprocess.run(["gcc", *_FLAGS, *flags, "-o", program, source], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise HostError("gcc is not installed (apt-get install gcc libc6-dev)") from None
    except subprocess.CalledProcessError as error:
        raise HostError(f"gcc refuses {source}: {error.stderr}") from None
    return program
