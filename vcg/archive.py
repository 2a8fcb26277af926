"""A directory tree as a tar stream, read from the outside although a hostile dimension has arranged it.

Everything is opened through ``vcg.linux.openat2``, one name at a time below the directory that it was found in: no
symlink is followed, no mount crossed, no FIFO waited for, no device opened. Links, FIFOs and device nodes go into the
archive as what they are. The format is POSIX pax with the sparse files of GNU tar (its manual, "PAX Format, Version
1.0"): GNU tar, bsdtar and Python read it.

Traps: a file of a few blocks may claim a size of exabytes, so only what is no hole is read; trees can be nested
deeper than descriptors last, so below :data:`DEPTH_MAX` they are left out, and told, as sockets are, which tar knows
not. So is what has a path of more than :data:`PATH_MAX` bytes: no tar could take it out again, and the paths of a small
tree of long names fill gigabytes. A file on which its owner holds a lease (fcntl(2), F_SETLEASE) is opened by nobody
until that one lets it go, and a frozen one does not: told. A tree that could not be brought to rest changes while it is
read: what has gone by the time it is opened is told, too.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import IO

from vcg.linux import copying, openat2

DEPTH_MAX = 256
PATH_MAX = 4095
"""Of limits.h, without the end of the string."""
OMITTED_MAX = 100
"""So many of what has been left out are named."""
_PATH_SHOWN = 200
_BLOCK_BYTES = tarfile.BLOCKSIZE
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)
"""What is said of an entry that is not any more what it was a moment ago, in a tree whose owner goes on."""
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Writer:
    """Writes one tree.

    Args:
        out: where the archive goes; it is only ever written to.

    Attributes:
        omitted: how many entries have been left out.
        told: the first of them, and why.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self.omitted = 0
        self.told: list[str] = []
        self._tar = tarfile.open(  # noqa: SIM115 (closed by write_tree)
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
        self._names: dict[int, tuple[str, str]] = {}

    def write_tree(self, root_fd: int) -> None:
        """Write everything below an open directory, in the order of names, and the end of the archive.

        Raises:
            OSError: it cannot be read, or the archive not be written.
        """
        levels = [(os.dup(root_fd), self._entries(root_fd), "")]
        self._tar.addfile(self._describe(os.fstat(root_fd), "."))
        try:
            while levels:
                directory, entries, path = levels[-1]
                name = next(entries, None)
                if name is None:
                    os.close(levels.pop()[0])
                    continue
                if len(os.fsencode(path)) + len(os.fsencode(name)) > PATH_MAX:
                    self._omit(path + name, f"its path is longer than {PATH_MAX} bytes")
                    continue
                try:
                    below = self._add(directory, name, path, len(levels))
                except BlockingIOError:
                    self._omit(path + name, "its owner holds a lease on it")
                    continue
                except OSError as error:
                    if error.errno not in _CHANGED:
                        raise
                    self._omit(path + name, "it was removed or replaced meanwhile")
                    continue
                if below is not None:
                    levels.append((below, self._entries(below), f"{path}{name}/"))
        finally:
            for directory, _, _ in levels:
                os.close(directory)
        self._tar.close()

    @staticmethod
    def _entries(directory: int) -> Iterator[str]:
        with os.scandir(directory) as found:
            return iter(sorted(entry.name for entry in found))

    def _add(self, directory: int, name: str, folder: str, depth: int) -> int | None:
        """Write one entry; a directory that is to be gone into is returned open."""
        path = folder + name
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISSOCK(found.st_mode):
            self._omit(path, "a socket")
        elif stat.S_ISREG(found.st_mode):
            self._add_file(directory, name, folder, found)
        else:
            entry = self._describe(found, path)
            if stat.S_ISLNK(found.st_mode):
                entry.linkname = os.readlink(name, dir_fd=directory)
            self._tar.addfile(entry)
            if stat.S_ISDIR(found.st_mode):
                if depth < DEPTH_MAX:
                    return openat2.open_beneath(directory, name, _DIRECTORY)
                self._omit(path, f"below it: {DEPTH_MAX} directories deep")
        return None

    def _add_file(self, directory: int, name: str, folder: str, found: os.stat_result) -> None:
        path, here = folder + name, (folder, name)
        entry = self._describe(found, path)
        if found.st_nlink > 1 and (first := self._names.setdefault(found.st_ino, here)) != here:
            entry.type, entry.linkname = tarfile.LNKTYPE, "".join(first)
            self._tar.addfile(entry)
            return
        fd = openat2.open_beneath(directory, name, _FILE)
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                self._omit(path, "it has become something else than a file")
                return
            size_bytes = os.fstat(fd).st_size
            pieces = list(copying.data(fd, size_bytes))
            if sum(length for _, length in pieces) == size_bytes:
                entry.size = size_bytes
                self._tar.addfile(entry, _Pieces(file, pieces))
                return
            content = _Pieces(file, pieces, _map(pieces, size_bytes))
            entry.size = content.size_bytes
            entry.pax_headers = {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": path,
                "GNU.sparse.realsize": str(size_bytes),
            }
            self._tar.addfile(entry, content)

    def _omit(self, path: str, why: str) -> None:
        self.omitted += 1
        if len(self.told) < OMITTED_MAX:
            self.told.append(f"{path[-_PATH_SHOWN:]}: {why}")

    @staticmethod
    def _describe(found: os.stat_result, path: str) -> tarfile.TarInfo:
        """What an entry is, without its content."""
        entry = tarfile.TarInfo(path)
        entry.mode, entry.uid, entry.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
        entry.mtime = found.st_mtime
        kinds = (
            (stat.S_ISDIR, tarfile.DIRTYPE),
            (stat.S_ISLNK, tarfile.SYMTYPE),
            (stat.S_ISFIFO, tarfile.FIFOTYPE),
            (stat.S_ISCHR, tarfile.CHRTYPE),
            (stat.S_ISBLK, tarfile.BLKTYPE),
        )
        entry.type = next((kind for is_it, kind in kinds if is_it(found.st_mode)), tarfile.REGTYPE)
        if entry.ischr() or entry.isblk():
            entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        return entry


def _map(pieces: list[tuple[int, int]], size_bytes: int) -> bytes:
    """Where the data of a sparse file belongs, as it stands before that data; always in whole blocks.

    A hole at the end is a piece of no length there: without one GNU tar would not know of it.
    """
    told = pieces if pieces and sum(pieces[-1]) == size_bytes else [*pieces, (size_bytes, 0)]
    numbers = [len(told), *(number for piece in told for number in piece)]
    text = "".join(f"{number}\n" for number in numbers).encode()
    return text.ljust(-(-len(text) // _BLOCK_BYTES) * _BLOCK_BYTES, b"\0")


class _Pieces(io.RawIOBase):
    """The pieces of a file one after another, for tarfile to read; what has been cut off meanwhile is zeros."""

    def __init__(self, file: IO[bytes], pieces: list[tuple[int, int]], before: bytes = b"") -> None:
        self._fd = file.fileno()
        self._pieces = iter(pieces)
        self._before = before
        self._at = self._left = 0
        self.size_bytes = len(before) + sum(length for _, length in pieces)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """As many bytes as are wanted, or as there are."""
        out = self._before[:size]
        self._before = self._before[size:]
        while len(out) < size:
            if not self._left:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._at, self._left = piece
            many = min(size - len(out), self._left)
            out += os.pread(self._fd, many, self._at).ljust(many, b"\0")
            self._at, self._left = self._at + many, self._left - many
        return out
