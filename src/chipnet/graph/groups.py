"""The convention for layers with groups (grouped and depthwise convolutions). It stands here only."""


def small_groups(groups: int, channels: int) -> bool:
    """Does a layer have more groups than it reads channels in each?

    Each of many small groups lives or dies as one, so a depthwise convolution loses single channels. Few wide
    groups all stay, and keep the same positions in each.

    Args:
        groups: of the layer.
        channels: that it reads.

    Example:
        >>> small_groups(8, 8), small_groups(2, 8), small_groups(1, 8)
        (True, False, False)
    """
    return groups > max(1, channels // groups)
