"""Pictures on slanted surfaces: a pyramid of halved pictures, read where and as finely as a surface shows them."""

import numpy as np


class Texture:
    """A picture and its halvings, down to its mean, which is what is seen of it from far away.

    Args:
        picture: uint8 ``(h, w, 3)``, or ``(h, w, 4)`` with its opacity, not premultiplied; sides of 2 or more.
    """

    def __init__(self, picture: np.ndarray) -> None:
        self.shape = picture.shape[:2]
        fine = np.full((*self.shape, 4), 255, dtype=np.float32)  # aligned pixels are read three times as fast
        fine[..., : picture.shape[2]] = picture
        if picture.shape[2] == 4:
            fine[..., :3] *= fine[..., 3:] / 255
        levels = [fine]
        while max(fine.shape[:2]) > 3:
            if fine.shape[0] > 3:
                even = fine.shape[0] // 2 * 2
                fine = 0.5 * (fine[:even:2] + fine[1:even:2])
            if fine.shape[1] > 3:
                even = fine.shape[1] // 2 * 2
                fine = 0.5 * (fine[:, :even:2] + fine[:, 1:even:2])
            levels.append(fine)
        levels.append(np.broadcast_to(fine.mean(axis=(0, 1)), (2, 2, 4)))
        self._rows, self._columns = (np.array([level.shape[axis] for level in levels]) for axis in (0, 1))
        self._first = np.concatenate([[0], np.cumsum(self._rows * self._columns)[:-1]])
        pixels = np.concatenate([level.reshape(-1, 4) for level in levels])
        self._pixels = (pixels + 0.5).astype(np.uint8).view(np.uint32).ravel()  # read whole: the fastest

    def mean(self) -> np.ndarray:
        """Mean colour, 0 to 255: float32 ``(3,)``."""
        return self._pixels[-1:].view(np.uint8)[:3].astype(np.float32)

    def read(self, u: np.ndarray, v: np.ndarray, footprint: np.ndarray, mirrored: bool = False) -> np.ndarray:
        """Read the picture at points.

        Args:
            u: From 0 at its left to 1 at its right side, float32 ``(n,)``.
            v: From 0 at its top to 1 at its bottom.
            footprint: Size of a pixel in pixels of the picture ``(n,)``: chooses the level.
            mirrored: The picture goes on endlessly as its mirror image; without, its border does.

        Returns:
            Colour premultiplied with opacity, and opacity, 0 to 255: float32 ``(n, 4)``.
        """
        level = np.clip(np.round(np.log2(np.maximum(footprint, 1e-6))), 0, len(self._rows) - 1).astype(np.intp)
        columns, rows = np.take(self._columns, level), np.take(self._rows, level)
        corner, part = [], []
        for share, count in ((u, columns), (v, rows)):
            folded = np.abs((share + 1) % 2 - 1) if mirrored else share
            place = np.clip(folded * count.astype(np.float32) - np.float32(0.5), 0, (count - 1).astype(np.float32))
            low = np.minimum(place.astype(np.intp), count - 2)
            corner.append(low)
            part.append((place - low).astype(np.float32)[:, None])
        (x, y), (right, down) = corner, part
        start = np.take(self._first, level) + y * columns + x
        upper, upper_right, lower, lower_right = (
            np.take(self._pixels, place).view(np.uint8).reshape(-1, 4).astype(np.float32)
            for place in (start, start + 1, start + columns, start + columns + 1)
        )
        upper += right * (upper_right - upper)
        lower += right * (lower_right - lower)
        return upper + down * (lower - upper)
