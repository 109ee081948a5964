"""Depth maps as arrays, and NumPy's files from anybody: headers decide before a value is read. No torch import.

An array's header states its type and shape, and an archive's directory the sizes of its entries, so an archive that
inflates to gigabytes, an array of objects or one that is too large is refused while nothing of it is in memory. No
entry is read but those that are asked for, and nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError

_HEADER_BYTES = 12_288  # numpy reads headers of 10,000 characters at most
_DIRECTORY_BYTES = 65_536  # of an archive with hundreds of arrays
_ZIP_END = b"PK\x05\x06"  # APPNOTE 4.3.16: signature, 8 bytes, then size and place of the directory
_ZIP64_LOCATOR = b"PK\x06\x07"  # APPNOTE 4.3.15: 20 bytes just before it in an archive of 4 GB or more
_CHUNK_BYTES = 1 << 20
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

_FAULTS = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, MemoryError,
    RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What the two readers raise on files that are damaged or made to harm: the header of an array is parsed as Python."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file, known by its header: shape and type, one that is no plain number too.

    Attributes:
        name: what errors call it.
        shape: of the array.
        dtype: type of a value.
        in_fortran_order: whether the first axis runs fastest.
        start_byte: where the values begin.
        entry_bytes: size of all, header and values; None where the end of the file is the end of the values.
        open: opens it at its header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    in_fortran_order: bool
    start_byte: int
    entry_bytes: int | None
    open: Callable[[], BinaryIO]

    def read(self, most: int) -> np.ndarray:
        """Read the values as they are stored, integers or floats of at most 8 bytes each.

        Args:
            most: values that it may have.

        Returns:
            The array.

        Raises:
            InputError: it holds no plain numbers or more than `most`, or is of another size than its header says.
        """
        size = math.prod(self.shape)
        if self.dtype.kind not in "uif" or self.dtype.itemsize > 8:
            raise InputError(f"{self.name} is an array of {reprlib.repr(str(self.dtype))}, wanted plain numbers.")
        if size > most:
            raise InputError(
                f"{self.name} has the shape {reprlib.repr(self.shape)}; at most {most:,} values are read."
            )
        if self.entry_bytes not in (None, self.start_byte + size * self.dtype.itemsize):
            raise InputError(f"{self.name} has another size than its header says.")
        values = np.empty(size, self.dtype)
        left = memoryview(values.view(np.uint8))
        with self.open() as file:
            file.read(self.start_byte)
            while len(left):
                count = file.readinto(left[:_CHUNK_BYTES])
                if not count:
                    raise EOFError("fewer values than the header says")
                left = left[count:]
            file.read(1)  # the end, where an archive compares its checksum
        return values.reshape(self.shape, order="F" if self.in_fortran_order else "C")


def check_file(path: Path | str) -> Path:
    """Check that there is a file to read; the error tells its name and not the folders above, which a page keeps back.

    Args:
        path: the file.

    Returns:
        The path.

    Raises:
        InputError: there is nothing of that name, or no plain file.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"file {path.name!r} does not exist.")
    if not path.is_file():
        raise InputError(f"file {path.name!r} must be a plain file, such as no folder is.")
    return path


@contextmanager
def open_arrays(path: Path | str) -> Iterator[dict[str, StoredArray]]:
    """Open a ``.npy`` or ``.npz`` file; no value is read before `StoredArray.read` is called inside.

    Args:
        path: the file; what it is, its first bytes tell.

    Yields:
        Name of each array, without ``.npy``, to the array; the one of a ``.npy`` file has the name ``""``.

    Raises:
        InputError: the file is missing, damaged or cut short, which may show while it is read, or an archive that
            numpy does not write.
    """
    path = check_file(path)
    kind = "npy"
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                yield {"": _stored(f"file {path.name!r}", None, lambda: path.open("rb"))}
                return
            kind = "npz"
            _check_directory(file, path.name)
            with zipfile.ZipFile(file) as archive:
                names = [entry.filename.removesuffix(".npy") for entry in archive.infolist()]
                if len(set(names)) != len(names):
                    raise InputError(f"file {path.name!r} has two arrays of one name.")
                plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                if any(entry.flag_bits & 1 or entry.compress_type not in plain for entry in archive.infolist()):
                    raise InputError(f"file {path.name!r} is encrypted or packed in a way that numpy does not write.")
                yield {
                    name: _stored(
                        f"{name} of file {path.name!r}", entry.file_size, lambda entry=entry: archive.open(entry)
                    )
                    for name, entry in zip(names, archive.infolist(), strict=True)
                }
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"file {path.name!r} may not be read by this user.") from error
    except _FAULTS as error:
        raise InputError(f"file {path.name!r} is no readable {kind} file: it is damaged or cut short.") from error


def _check_directory(file: BinaryIO, name: str) -> None:
    """Refuse an archive whose directory is not of a sane size, before it is read."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 65_536 - 22 - 20))
    tail = file.read()
    end = tail.rindex(_ZIP_END)
    directory_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
    if directory_bytes > _DIRECTORY_BYTES or tail[max(0, end - 20) : end].startswith(_ZIP64_LOCATOR):
        raise InputError(f"file {name!r} has the directory of a far larger archive than one of arrays.")


def _stored(name: str, entry_bytes: int | None, open_entry: Callable[[], BinaryIO]) -> StoredArray:
    with open_entry() as file:
        head = BytesIO(file.read(_HEADER_BYTES))  # so that a header which claims to be long is cut short
    shape, in_fortran_order, dtype = _HEADER_READERS[np.lib.format.read_magic(head)](head)
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return StoredArray(name, tuple(map(int, shape)), dtype, in_fortran_order, head.tell(), entry_bytes, open_entry)


def check_depth(depth_m: np.ndarray) -> np.ndarray:
    """Return a depth map: metres, floating point ``(H, W)``, above 0; NaN has no value, inf is infinitely far.

    Raises:
        InputError: If it is anything else.
    """
    is_float = isinstance(depth_m, np.ndarray) and np.issubdtype(depth_m.dtype, np.floating)
    if not is_float or depth_m.ndim != 2 or depth_m.size == 0:
        described = f"{depth_m.dtype} {depth_m.shape}" if isinstance(depth_m, np.ndarray) else type(depth_m).__name__
        raise InputError(f"depth_m is {described}, wanted a floating-point array (H, W) in metres")
    if (depth_m <= 0).any():
        raise InputError(f"depth_m has the value {np.nanmin(depth_m):g}, wanted depths above 0 m and NaN for no value")
    return depth_m


def finite_range(depth_m: np.ndarray) -> tuple[float, float] | None:
    """Find the least and the greatest finite value of an array, without a copy of it; None where there is none."""
    finite = np.isfinite(depth_m)
    least, most = np.min(depth_m, where=finite, initial=np.inf), np.max(depth_m, where=finite, initial=-np.inf)
    return (float(least), float(most)) if least <= most else None
