"""The benchmarks of the project itself (``vcg bench``): each is a module with one ``BENCHMARK``.

A benchmark with a peer runs both in one go, interleaved, because timings drift between minutes and machines.
"""
