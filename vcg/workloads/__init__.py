"""What runs inside a dimension.

A workload is a function of a :class:`vcg.dimension.Dimension`; a testbed names it ``module:function``. It is imported
while the process is still outside, and called when it is confined: whatever it needs, it must have imported by then.
"""
