"""Random crops and mirror images of training batches, in NumPy on bytes."""

import numpy as np


def augmented(images: np.ndarray, shift: int, mirror: bool, random: np.random.Generator) -> np.ndarray:
    """Move each image of a batch by up to `shift` pixels (zeros come in) and, with `mirror`, turn half of them left-right.

    images : uint8 (n, c, h, w); returns a new array of that shape, or the same one if there is nothing to do.
    """
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
