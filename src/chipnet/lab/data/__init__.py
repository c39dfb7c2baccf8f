"""Image data sets from disk: split, normalised and in batches, the same for every run with the same seed.

>>> from chipnet.lab.data import load_data
>>> data = load_data("digits")
>>> data.num_classes, data.in_channels, data.image_size
(10, 1, 8)
"""

from chipnet.lab.data.folders import FolderBatches, FolderImages
from chipnet.lab.data.images import Augment, Batches, TensorImages, shift_and_flip
from chipnet.lab.data.load import Data, list_data, load_data
from chipnet.lab.data.loaders import LoaderBatches, LoaderImages, Loaders

__all__ = [
    "Augment",
    "Batches",
    "Data",
    "FolderBatches",
    "FolderImages",
    "LoaderBatches",
    "LoaderImages",
    "Loaders",
    "TensorImages",
    "list_data",
    "load_data",
    "shift_and_flip",
]
