"""Files of the idx format, in which MNIST and Fashion-MNIST are published, plain or gzipped.

The format (http://yann.lecun.com/exdb/mnist/): a big-endian 32-bit magic number 0x0000TTDD with the element
type TT (08: unsigned byte) and the number of dimensions DD, one 32-bit size per dimension, then the bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chipnet._util.text import amount
from chipnet.errors import ConfigError


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The unsigned bytes of an idx file.

    Args:
        path: the file; gzipped when its name ends in `.gz`.
        dimensions: how many it must have (3 for images, 1 for labels).

    Returns:
        uint8 tensor of the file's own shape.

    Raises:
        ConfigError: unreadable, truncated or overlong, or not an idx file of bytes with that many dimensions.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "labels-idx1-ubyte")
        ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 6, 7]))
        ...     read_idx(file, 1).tolist()
        [5, 6, 7]
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): it is truncated or corrupt. Copy it again."
        ) from error
    header = 4 + 4 * dimensions
    magic = int.from_bytes(content[:4], "big")
    wanted = 0x0800 + dimensions
    if len(content) < 4 or magic != wanted:
        raise ConfigError(
            f"{path} has the magic number 0x{magic:08x}, not 0x{wanted:08x}: it is no idx file of unsigned "
            f"bytes "
            f"with {amount(dimensions, 'dimension')}. Are images and labels swapped?"
        )
    if len(content) < header:
        raise ConfigError(f"{path} is truncated within its header. Copy it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise ConfigError(
            f"{path} is {'truncated' if len(content) < expected else 'too long'}: {amount(len(content), 'byte')} "
            f"(uncompressed) where its header {list(shape)} asks for {expected:,}. Copy it again."
        )
    # A copy, because the bytes object is read-only memory, which a tensor cannot promise to leave alone.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
