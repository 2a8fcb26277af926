"""Network namespaces (network_namespaces(7)): what else keeps abstract Unix sockets apart where Landlock cannot.

Such a socket has a name in its network namespace, whatever the root directory of who asks for it. A new namespace costs
0.8 ms (2 CPUs, Linux 6.18), and the kernel clears it away at leisure; so it is for hosts that need it.
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
