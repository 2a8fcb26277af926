"""What it takes to copy a filesystem's image: syncfs(2), ioctl_ficlone(2), and holes (lseek(2), SEEK_DATA).

Traps: blocks that were allocated but never written are holes to SEEK_DATA, and read as zeros; so a copy may be smaller
than what it was copied from. But whatever is in the page cache is data to it, also such blocks if somebody has read
them, or their neighbours (the cache has large folios). Reading ahead would let the holes vanish while one looks for
them, and what a copy leaves in the cache those that the next one looks for. SEEK_DATA does not know of what the
filesystem *on* a loop device still holds back: syncfs first.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

from vcg.linux.libc import check, libc

_FICLONE = 0x40049409
_NOT_CLONED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)
_PIECE_BYTES = 1 << 16


def sync_filesystem(fd: int, name: str) -> None:
    """Write out everything that the filesystem of an open file holds back, data and metadata (syncfs(2)).

    Args:
        name: goes into the error.

    Raises:
        OSError: EIO if some of it could not be written.
    """
    check(libc.syncfs(fd), f"syncfs {name}")


def data(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each piece of a file that is no hole, in order, up to a size."""
    end = 0
    while end < size_bytes:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole from here on
                raise
            return
        if begin >= size_bytes:
            return
        end = min(os.lseek(fd, begin, os.SEEK_HOLE), size_bytes)
        yield begin, end - begin


def clone(source: int, target: int) -> bool:
    """Let an empty file share all blocks of another; False where the filesystem can't, or they lie on two."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NOT_CLONED:
            raise
        return False
    return True


def copy(source: int, target: int) -> None:
    """Copy a file into an empty one, holes as holes; zeros that were written become holes, too.

    Raises:
        OSError: ENOSPC and what else read(2) and write(2) raise.
    """
    size_bytes = os.fstat(source).st_size
    os.ftruncate(target, size_bytes)
    os.posix_fadvise(source, 0, 0, os.POSIX_FADV_RANDOM)
    zeros = bytes(_PIECE_BYTES)
    for begin, length in list(data(source, size_bytes)):
        at, end = begin, begin + length
        while at < end and (piece := os.pread(source, min(_PIECE_BYTES, end - at), at)):
            if piece != zeros[: len(piece)]:
                _write(target, piece, at)
            at += len(piece)
    os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)


def _write(fd: int, content: bytes, at: int) -> None:
    while content:
        written = os.pwrite(fd, content, at)
        content, at = content[written:], at + written
