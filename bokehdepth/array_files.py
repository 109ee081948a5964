"""NumPy's files, ``.npy`` and ``.npz``, from anybody: their headers decide before a value is read. No torch import.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError

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
class ArrayHeader:
    """What a file says of an array before its values.

    Attributes:
        shape: of the array.
        dtype: type of a value; one that is no plain number is never read.
        in_fortran_order: whether the first axis runs fastest.
        start_byte: where the values begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    in_fortran_order: bool
    start_byte: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


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
def _as_one_sentence(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"file {path.name!r} may not be read by this user.") from error
    except _FAULTS as error:
        raise InputError(f"file {path.name!r} is no readable {kind} file: it is damaged or cut short.") from error


def _read_header(file: BinaryIO) -> ArrayHeader:
    head = BytesIO(file.read(_HEADER_BYTES))  # so that a header which claims to be long is cut short
    shape, in_fortran_order, dtype = _HEADER_READERS[np.lib.format.read_magic(head)](head)
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return ArrayHeader(tuple(map(int, shape)), dtype, in_fortran_order, head.tell())


def _check_header(header: ArrayHeader, name: str, most: int) -> None:
    """Refuse an array whose values are not to be read."""
    if header.dtype.kind not in "uif" or header.dtype.itemsize > 8:
        raise InputError(f"{name} is an array of {reprlib.repr(str(header.dtype))}, wanted plain numbers.")
    if header.size > most:
        raise InputError(f"{name} has the shape {reprlib.repr(header.shape)}; at most {most:,} values are read.")


def _read_values(file: BinaryIO, header: ArrayHeader) -> np.ndarray:
    values = np.empty(header.size, header.dtype)
    left = memoryview(values.view(np.uint8))
    while len(left):
        count = file.readinto(left[:_CHUNK_BYTES])
        if not count:
            raise EOFError("fewer values than the header says")
        left = left[count:]
    return values.reshape(header.shape, order="F" if header.in_fortran_order else "C")


def read_npy_header(path: Path | str) -> ArrayHeader:
    """Read what a ``.npy`` file says of its array; no value is read.

    Args:
        path: the file.

    Returns:
        Its header.

    Raises:
        InputError: the file is missing, damaged or no array.
    """
    path = check_file(path)
    with _as_one_sentence(path, "npy"), path.open("rb") as file:
        return _read_header(file)


def read_npy(path: Path | str, most: int) -> np.ndarray:
    """Read the array of a ``.npy`` file.

    Args:
        path: the file.
        most: values that it may have.

    Returns:
        Integers or floats of at most 8 bytes each, as they are stored.

    Raises:
        InputError: the file is missing, damaged or cut short, or holds no plain numbers or more than `most`.
    """
    path = check_file(path)
    with _as_one_sentence(path, "npy"), path.open("rb") as file:
        header = _read_header(file)
        _check_header(header, f"file {path.name!r}", most)
        file.seek(header.start_byte)
        return _read_values(file, header)


@contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open an archive whose directory is of a sane size, and find its arrays by their names without ``.npy``."""
    with _as_one_sentence(path, "npz"), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65_536 - 22 - 20))
        tail = file.read()
        end = tail.rindex(_ZIP_END)
        directory_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
        if directory_bytes > _DIRECTORY_BYTES or tail[max(0, end - 20) : end].startswith(_ZIP64_LOCATOR):
            raise InputError(f"file {path.name!r} has the directory of a far larger archive than one of arrays.")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            if len(set(names)) != len(names):
                raise InputError(f"file {path.name!r} has two arrays of one name.")
            plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if any(entry.flag_bits & 1 or entry.compress_type not in plain for entry in entries):
                raise InputError(f"file {path.name!r} is encrypted or packed in a way that numpy does not write.")
            yield archive, dict(zip(names, entries, strict=True))


def read_npz_headers(path: Path | str) -> dict[str, ArrayHeader]:
    """Read what an ``.npz`` file says of its arrays; none of their values is read.

    Args:
        path: the file.

    Returns:
        Name of each array to its header. An array of objects has one too; it cannot be read.

    Raises:
        InputError: the file is missing, damaged or no archive of arrays.
    """
    path = check_file(path)
    headers = {}
    with _archive(path) as (archive, entries):
        for name, entry in entries.items():
            with archive.open(entry) as file:
                headers[name] = _read_header(file)
    return headers


def read_npz(path: Path | str, most: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read some arrays of an ``.npz`` file and leave the others alone.

    Args:
        path: the file.
        most: name of each array that is wanted to the values that it may have.

    Returns:
        Name to array: integers or floats of at most 8 bytes each, as they are stored.

    Raises:
        InputError: as `read_npy` says, or an array is not there, or an entry has another size than its array.
    """
    path = check_file(path)
    arrays = {}
    with _archive(path) as (archive, entries):
        for name, limit in most.items():
            if name not in entries:
                raise InputError(f"file {path.name!r} has no array {name!r}.")
            entry = entries[name]
            with archive.open(entry) as file:
                header = _read_header(file)
            _check_header(header, f"{name} of file {path.name!r}", limit)
            if entry.file_size != header.start_byte + header.size * header.dtype.itemsize:
                raise InputError(f"{name} of file {path.name!r} has another size than its header says.")
            with archive.open(entry) as file:
                file.read(header.start_byte)
                arrays[name] = _read_values(file, header)
                file.read(1)  # the end, where the checksum is compared
    return arrays
