"""The error that the probes raise."""

from __future__ import annotations

from vcg.errors import VcgError


class ProbeError(VcgError):
    """A probe can't be attached, or was asked for something that is not there."""
