"""Network namespaces (network_namespaces(7)): what keeps abstract Unix sockets apart.

Such a socket has a name in its network namespace, whatever the root directory of who asks for it. Landlock can refuse
to connect to one (since Linux 6.12), but not to leave a name there for somebody on the host.

Trap: a new namespace takes 0.8 ms of CPU (Linux 6.18), so it is made before a process gets its scheduling class; the
kernel clears it away at leisure.
"""

from __future__ import annotations

from pathlib import Path

from vcg.linux.libc import check, libc

_CLONE_NEWNET = 0x40000000


def is_available() -> bool:
    """Whether the kernel has them (CONFIG_NET_NS)."""
    return Path("/proc/self/ns/net").exists()


def enter_own() -> None:
    """Give the calling process a network of its own: nothing but a loopback that is down."""
    check(libc.unshare(_CLONE_NEWNET), "unshare network namespace")
