"""Small archives in the layouts of the official ones."""

import io
import tarfile

import numpy as np


def pack(path, held):
    """Write a tar.gz of {name: bytes, or the header of something that is no file}."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in held.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def cifar(path, train, test, **more):
    """Write CIFAR-10's archive of (labels, images [image, colour, row, column]); training images make five batches."""

    def records(labels, images):
        return np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1).astype(np.uint8).tobytes()

    batches = zip(np.split(train[0], 5), np.split(train[1], 5), strict=True)
    held = {f"data_batch_{i}.bin": records(*batch) for i, batch in enumerate(batches, 1)}
    held |= {"test_batch.bin": records(*test), "batches.meta.txt": b"airplane\n", "readme.html": b"<html>"}
    return pack(path, {f"cifar-10-batches-bin/{name}": content for name, content in {**held, **more}.items()})


def imdb(path, reviews, **more):
    """Write the review archive of {(split, class): [bytes]}, sorted by class as the official one is."""
    held = {"aclImdb/README": b"Large Movie Review Dataset", "aclImdb/train/unsup/0_0.txt": b"no label"}
    for (split, label), texts in reviews.items():
        held |= {f"aclImdb/{split}/{label}/{i}_7.txt": content for i, content in enumerate(texts)}
    return pack(path, {**held, **more})
