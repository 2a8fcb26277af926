"""One small module for each kernel interface, named as the kernel names it.

Each function makes one system call (or a few that only make sense together), raises ``OSError`` with the object's
name in it, and decides nothing. Only the standard library is imported: the clock, the orchestrator and the dimensions
live on these modules.
"""
