"""eBPF probes: what the kernel does to each dimension, and how far that agrees with the kernel's own account."""

from probes.errors import ProbeError
from probes.session import Session, attach
from probes.snapshot import AgreementRow, CostRow, CounterRow, HistogramRow, Snapshot

__all__ = [
    "AgreementRow",
    "CostRow",
    "CounterRow",
    "HistogramRow",
    "ProbeError",
    "Session",
    "Snapshot",
    "attach",
]
