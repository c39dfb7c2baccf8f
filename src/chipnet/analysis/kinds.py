"""The kinds of cost: what a budget can limit."""

KINDS = ("channels", "volume", "params", "macs")
"""What a budget can limit, in the order in which a budget lists its targets."""

LATENCY = "latency"
"""A fifth kind, which is measured and not counted: see `chipnet.timing.tables`. Its limits are nanoseconds."""
