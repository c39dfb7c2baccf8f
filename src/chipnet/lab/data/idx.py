"""Files of the idx format, in which MNIST and Fashion-MNIST are published, plain or gzipped."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from chipnet._util.imports import optional_import
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
    mnist = optional_import("torchvision.datasets.mnist", needed_for=f"Reading {path}", install="torchvision")
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = path
            if path.suffix == ".gz":
                plain = Path(folder, path.stem)
                with gzip.open(path) as packed, open(plain, "wb") as file:
                    shutil.copyfileobj(packed, file)
            content: Tensor = mnist.read_sn3_pascalvincent_tensor(str(plain))
        why = f"it holds {content.dtype} {list(content.shape)}"
    except (OSError, EOFError, zlib.error) as error:
        why = str(error)
    except (AssertionError, KeyError, ValueError, TypeError, RuntimeError):  # of torchvision's reader
        why = "its length or its kind is not what its header says"
    else:
        if content.dtype == torch.uint8 and content.ndim == dimensions:
            return content
    raise ConfigError(
        f"{path} cannot be read as an idx file of unsigned bytes with {amount(dimensions, 'dimension')} ({why}): "
        "it is truncated or corrupt, or another file. Copy it again, and see that images and labels are not "
        "swapped."
    )
