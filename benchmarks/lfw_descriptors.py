"""Hand-made descriptors of aligned faces, for `lfw_classical.py`.

Each takes an RGB image, uint8 [90, 90, 3], and gives a vector [F]. Histograms
are over cells of two by two blocks, a block apart; of their shares square roots are
taken, so that an inner product is the Hellinger kernel.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.ndimage import convolve1d
from skimage.color import rgb2lab
from skimage.feature import local_binary_pattern
from skimage.transform import resize

SIDE = 90
UNIFORM_CODES = 59


def lbp(image: np.ndarray) -> np.ndarray:
    """Uniform local binary patterns of three scales, two radii (Ojala et al., 2002)."""
    grey = grey_of(image)
    parts = []
    for side in (90, 64, 45):
        scaled = np.rint(scaled_to(grey, side)).astype(np.uint8)
        for radius in (1, 2):
            codes = local_binary_pattern(scaled, 8, radius, "nri_uniform")
            parts.append(cell_histograms(codes.astype(int), UNIFORM_CODES, block=5))
    return np.sqrt(np.concatenate(parts))


def lpq(image: np.ndarray) -> np.ndarray:
    """Local phase quantisation: signs of four local frequencies (Ojansivu, 2008)."""
    grey = grey_of(image)
    parts = []
    for side, window, block in ((90, 7, 7), (90, 11, 7), (64, 7, 6)):
        scaled = scaled_to(grey, side)
        bits = [
            part > 0
            for response in lowest_frequencies(scaled, window)
            for part in (response.real, response.imag)
        ]
        codes = sum(bit.astype(int) << i for i, bit in enumerate(bits))
        parts.append(cell_histograms(codes, 256, block))
    return np.sqrt(np.concatenate(parts))


def hog(image: np.ndarray) -> np.ndarray:
    """Gradients by 18 signed orientations at three scales (Dalal and Triggs, 2005)."""
    orientations = 18
    parts = []
    for side in (90, 64, 45):
        dy, dx = np.gradient(np.sqrt(scaled_to(grey_of(image), side)))
        place = np.arctan2(dy, dx) % (2 * np.pi) / (2 * np.pi) * orientations
        low = np.floor(place).astype(int)
        upper = place - low
        maps = np.zeros((side, side, orientations))
        grid = np.ogrid[:side, :side]
        strength = np.hypot(dy, dx)
        maps[(*grid, low % orientations)] += strength * (1 - upper)
        maps[(*grid, (low + 1) % orientations)] += strength * upper
        cells = cell_sums(maps, block=4)
        parts.append(np.sqrt(cells / around(cells.sum(-1))[..., None]).ravel())
    return np.concatenate(parts)


def gabor(image: np.ndarray) -> np.ndarray:
    """Magnitudes of five scales and eight orientations (Liu and Wechsler, 2002)."""
    margin = 19
    grey = np.pad(np.log1p(grey_of(image)), margin, mode="reflect")
    responses = np.fft.ifft2(np.fft.fft2(grey) * gabor_bank(len(grey)))
    magnitudes = np.abs(responses)[:, margin:-margin, margin:-margin]
    cells = cell_sums(np.moveaxis(magnitudes, 0, -1), block=6)
    cells = cells.reshape(*cells.shape[:2], 5, 8)
    return np.sqrt(cells / cells.mean(axis=(0, 1, 3), keepdims=True)).ravel()


def colour_lbp(image: np.ndarray) -> np.ndarray:
    """Local binary patterns of two opponent colours, in quarters of a level."""
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    parts = []
    for opponent in (red - green, (red + green) / 2 - blue):
        for side in (64, 45):
            scaled = np.rint(4 * scaled_to(opponent, side)).astype(int)
            codes = local_binary_pattern(scaled, 8, 2, "nri_uniform").astype(int)
            parts.append(cell_histograms(codes, UNIFORM_CODES, block=5))
    return np.sqrt(np.concatenate(parts))


def pixels(image: np.ndarray) -> np.ndarray:
    """Small pictures: standardised lightness 30x30, two chromas 18x18 (CIE Lab)."""
    lightness, a, b = np.moveaxis(rgb2lab(image), -1, 0)
    light = scaled_to(lightness, 30)
    light = (light - light.mean()) / light.std()
    chroma = [scaled_to(c, 18).ravel() / 8 for c in (a, b)]
    return np.concatenate([light.ravel(), *chroma])


DESCRIPTORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    f.__name__: f for f in (lbp, lpq, hog, gabor, colour_lbp, pixels)
}


def mirrored_mean(name: str, image: np.ndarray) -> np.ndarray:
    """Mean of the descriptors of an image and of its mirror image, float16 [F]."""
    describe = DESCRIPTORS[name]
    return ((describe(image) + describe(image[:, ::-1])) / 2).astype(np.float16)


def grey_of(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.299, 0.587, 0.114])


def scaled_to(channel: np.ndarray, side: int) -> np.ndarray:
    if len(channel) == side:
        return channel
    return resize(channel, (side, side), anti_aliasing=True, preserve_range=True)


def cell_sums(maps: np.ndarray, block: int) -> np.ndarray:
    """Sums over cells of two by two blocks, [H, W, C] to [n, n, C]; the rim is cut."""
    n = len(maps) // block
    start = (len(maps) - n * block) // 2
    inner = maps[start : start + n * block, start : start + n * block]
    sums = inner.reshape(n, block, n, block, -1).sum(axis=(1, 3))
    return sums[1:, 1:] + sums[:-1, 1:] + sums[1:, :-1] + sums[:-1, :-1]


def cell_histograms(codes: np.ndarray, values: int, block: int) -> np.ndarray:
    """Shares of each code in each cell, flat."""
    n = len(codes) // block
    start = (len(codes) - n * block) // 2
    inner = codes[start : start + n * block, start : start + n * block]
    of_block = np.arange(n * block) // block
    index = (of_block[:, None] * n + of_block) * values + inner
    counts = np.bincount(index.ravel(), minlength=n * n * values)
    cells = cell_sums(counts.reshape(n, n, values), block=1)
    return cells.ravel() / (2 * block) ** 2


def around(sums: np.ndarray) -> np.ndarray:
    """Mean over each cell and its eight neighbours, and a little."""
    padded = np.pad(sums, 1, mode="edge")
    n = len(sums)
    shifted = [padded[i : i + n, j : j + n] for i in range(3) for j in range(3)]
    return np.mean(shifted, axis=0) + 1e-3


def lowest_frequencies(image: np.ndarray, window: int) -> list[np.ndarray]:
    """Responses at (1, 0), (0, 1), (1, 1) and (1, -1) periods a window, [H, W] each."""
    at = np.arange(window) - window // 2
    flat = np.ones(window, complex)
    wave = np.exp(-2j * np.pi * at / window)

    def along(x: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
        real = convolve1d(x, kernel.real, axis)
        return real + 1j * convolve1d(x, kernel.imag, axis)

    rows = {name: along(image, k, 1) for name, k in (("flat", flat), ("wave", wave))}
    kernels = (("wave", flat), ("flat", wave), ("wave", wave), ("wave", wave.conj()))
    return [
        along(rows[name].real, k, 0) + 1j * along(rows[name].imag, k, 0)
        for name, k in kernels
    ]


@cache
def gabor_bank(size: int) -> np.ndarray:
    """Transfer functions of 40 wavelets without response to a constant [40, n, n]."""
    frequency = 2 * np.pi * np.fft.fftfreq(size)
    x, y = np.meshgrid(frequency, frequency)
    bank = []
    for scale in range(5):
        centre = np.pi / 2 / np.sqrt(2) ** scale
        spread = (2 * np.pi / centre) ** 2 / 2
        for angle in np.pi * np.arange(8) / 8:
            apart = (x - centre * np.cos(angle)) ** 2 + (
                y - centre * np.sin(angle)
            ) ** 2
            constant = np.exp(-spread * (x**2 + y**2 + centre**2))
            bank.append(np.exp(-spread * apart) - constant)
    return np.stack(bank)
