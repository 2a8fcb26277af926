"""The C library, and how its errors become ``OSError``.

Trap: a variadic ``syscall(2)`` takes longs. Every argument is declared, so that ctypes never passes a 32-bit int where
the kernel reads 64 bits.
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

_syscall = libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 7


def check(result: int, name: str) -> int:
    """Return ``result``, or raise the ``OSError`` that errno stands for, naming what was acted on."""
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)
    return result


def syscall(number: int, *arguments: int, name: str) -> int:
    """A system call without a wrapper in the C library.

    Args:
        number: of the call, on x86-64.
        arguments: up to six; addresses as integers.
        name: goes into the error.
    """
    return check(_syscall(number, *arguments, *(0,) * (6 - len(arguments))), name)
