"""Data sets as small files in their published formats."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest


def idx_bytes(array):
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, gz=True, train=60, test=20):
    """Image i of either set has its index as its first pixel and label i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        images[:, 0, 0] = np.arange(count)
        arrays = {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": np.arange(count) % 10}
        for name, array in arrays.items():
            content = idx_bytes(array)
            if gz:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def write_cifar(root, monkeypatch, name="CIFAR10"):
    """Six (or two) pickled batches of images, and torchvision told that theirs are the official checksums."""
    reader = getattr(pytest.importorskip("torchvision.datasets"), name)
    base = root / reader.base_folder
    base.mkdir(parents=True)
    classes = 10 if name == "CIFAR10" else 100
    key, md5 = ("labels" if name == "CIFAR10" else "fine_labels"), {}

    def write(file, content):
        (base / file).write_bytes(pickle.dumps(content, protocol=2))
        md5[file] = hashlib.md5((base / file).read_bytes()).hexdigest()

    count = 20 if name == "CIFAR10" else 200
    for number, (file, _) in enumerate([*reader.train_list, *reader.test_list]):
        data = np.zeros((count, 3072), np.uint8)
        data[:, 0], data[:, 1024], data[:, 2048 + 33] = number, 100, np.arange(count)
        write(file, {"data": data, key: [i % classes for i in range(count)]})
    write(reader.meta["filename"], {reader.meta["key"]: [f"class {i}" for i in range(classes)]})
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(reader, attribute, [[f, md5[f]] for f, _ in getattr(reader, attribute)])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5[reader.meta["filename"]]})
    return base


def write_svhn(root, monkeypatch):
    io = pytest.importorskip("scipy.io")
    reader = pytest.importorskip("torchvision.datasets").SVHN
    entries = dict(reader.split_list)
    for split, count in (("train", 40), ("test", 20)):
        path = root / f"{split}_32x32.mat"
        images = np.zeros((32, 32, 3, count), np.uint8)
        images[0, 1, 2] = np.arange(count)
        io.savemat(path, {"X": images, "y": (np.arange(count) % 10 + 1)[:, None].astype(np.uint8)})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        entries[split] = [*entries[split][:2], md5]
    monkeypatch.setattr(reader, "split_list", entries)


def write_image(path, colour, size=(64, 64), mode="RGB"):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size, colour).save(path)


def write_tiny_imagenet(root, wnids=("n02", "n01"), per_class=10):
    root.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn03\tunused\n")
    lines = []
    for number, wnid in enumerate(wnids):
        for i in range(per_class):
            # Tiny ImageNet has some grey images among the coloured ones.
            mode, colour = ("L", 80) if i == 0 else ("RGB", (10 * i, 0, 200))
            write_image(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", colour, mode=mode)
        for i in range(3):
            write_image(root / "val" / "images" / f"val_{number}{i}.JPEG", (0, 255 * number, 0))
            lines.append(f"val_{number}{i}.JPEG\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    return root


def write_folders(root, parts=("train", "val"), classes=("cat", "dog"), per_class=10):
    for part in parts:
        for number, name in enumerate(classes):
            for i in range(per_class):
                suffix = "png" if i % 2 else "jpg"
                write_image(root / part / name / f"{i}.{suffix}", (255 * number, 0, 20 * i), size=(40, 30))
    return root
