"""futex(2): FUTEX_WAIT_BITSET and FUTEX_WAKE_BITSET on a word in shared memory.

A waiter names a bit; one wake call wakes exactly the waiters whose bits are set. For a waiter the word may lie in a
read-only mapping. Waits return for any reason (woken, word changed, signal, time-out): the caller looks at the shared
memory again, which is the only truth.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from vcg.linux.libc import libc

_SYS_FUTEX = 202
_FUTEX_WAIT_BITSET = 9
_FUTEX_WAKE_BITSET = 10
_INT_MAX = 2**31 - 1
MATCH_ANY = 0xFFFFFFFF


class _PyBuffer(ctypes.Structure):
    """``Py_buffer`` of the C API: the only way to the address of a read-only buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(words: memoryview, index: int) -> int:
    """Address of ``words[index]``; valid as long as the mapping is."""
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(words), ctypes.byref(buffer), ctypes.c_int(0))
    try:
        return int(buffer.buf) + index * words.itemsize
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_long,
)


def waiter(address: int, bitset: int) -> Callable[[int], None]:
    """A function that sleeps while the word at ``address`` holds the value it is given."""
    futex = _PROTOTYPE(("syscall", libc))
    nowhere = None

    def wait(expected: int) -> None:
        futex(_SYS_FUTEX, address, _FUTEX_WAIT_BITSET, expected, nowhere, nowhere, bitset)

    return wait


def waker(address: int) -> Callable[[int], int]:
    """A function that wakes every waiter with a bit in common with its argument, and returns how many there were."""
    futex = _PROTOTYPE(("syscall", libc))
    nowhere = None

    def wake(bitset: int) -> int:
        return futex(_SYS_FUTEX, address, _FUTEX_WAKE_BITSET, _INT_MAX, nowhere, nowhere, bitset)  # type: ignore[no-any-return]

    return wake


def wait_until(address: int, expected: int, deadline_ns: int, bitset: int = MATCH_ANY) -> None:
    """Sleep while the word holds ``expected``, at most until an absolute time of CLOCK_MONOTONIC."""
    deadline = _Timespec(*divmod(deadline_ns, 1_000_000_000))
    _PROTOTYPE(("syscall", libc))(
        _SYS_FUTEX, address, _FUTEX_WAIT_BITSET, expected, ctypes.addressof(deadline), None, bitset
    )
