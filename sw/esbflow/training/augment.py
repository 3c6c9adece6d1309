"""Random crops and mirror images of training batches, in NumPy on bytes."""

import numpy as np

from esbflow.errors import BadValue
from esbflow.training.data import LabelledImages


def augmented(images: np.ndarray, shift: int, mirror: bool, random: np.random.Generator) -> np.ndarray:
    """Move each image of a batch by up to `shift` pixels (zeros come in) and, with `mirror`, turn half of them left-right.

    images : uint8 (n, c, h, w); returns a new array of that shape, or the same one if there is nothing to do.

    Raises
    ------
    ValueError
        if there is something to do and they are no images.
    """
    if (shift or mirror) and images.ndim != 4:
        raise BadValue(f"only images (n, c, h, w) can be moved and turned, not {images.shape}; use shift=0 and "
                         "mirror=False")
    if shift:
        count, _, height, width = images.shape
        padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        dy, dx = random.integers(0, 2 * shift + 1, (2, count))
        images = windows[np.arange(count), :, dy, dx]
    if mirror:
        images = images.copy()
        turned = random.random(len(images)) < 0.5
        images[turned] = images[turned][..., ::-1]
    return images


def augmented_pair(images: np.ndarray, labels: np.ndarray, shift: int, mirror: bool,
                   random: np.random.Generator) -> LabelledImages:
    """(images, labels) after `augmented`: labels (n,) stay as they are, masks (n, 1, h, w) go with their images."""
    if labels.ndim == 1:
        return LabelledImages(augmented(images, shift, mirror, random), labels)
    both = augmented(np.concatenate([images, labels], axis=1), shift, mirror, random)
    return LabelledImages(both[:, :images.shape[1]], both[:, images.shape[1]:])
