"""Files of packed rows, and of pictures, with random access."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chameleon_jax.batch import Batch, row_dtype
from chameleon_jax.errors import DamagedFile, FileError
from data_pipeline.tokenized import run_begins

Decode = Callable[[Sequence[bytes]], Batch]
"""From the bytes of rows to their arrays. Raises ValueError with the reason if one of them is damaged."""


class RecordFiles:
    """The records of several files, in their order. Errors name the file and the record.

    Several threads may read from it.
    """

    def __init__(self, name: str, kind: str, files: Sequence[Path], file_records: Sequence[int], buffer_size: int):
        """Opens the files.

        Args:
          name: of what they hold together, for messages.
          kind: what a record is, for messages: row or picture.
          file_records: the number of records in each file.
          buffer_size: bytes that are read at a time.

        Raises:
          FileError: if files are missing or damaged. A damaged record raises when it is read.
        """
        self._name, self._kind, self._files = name, kind, files
        self._begins = np.cumsum([0, *file_records])
        _allow_open_files(len(files))
        self._readers = [self._open(*each, buffer_size) for each in zip(files, file_records, strict=True)]
        self._locks = [threading.Lock() for _ in files]

    def _open(self, file: Path, records: int, buffer_size: int):
        from array_record.python.array_record_module import ArrayRecordReader

        if not file.is_file():
            raise FileError(f"{file}: no such file; prepare again")
        try:
            # One record after another by one thread takes 4 to 9 microseconds each. With threads of its own, a reader
            # is as fast only for many records of one file at a time, which a shuffled order does not have.
            options = "readahead_buffer_size:0,max_parallelism:0"
            reader = ArrayRecordReader(str(file), options=options, file_reader_buffer_size=buffer_size)
            found = reader.num_records()
        except Exception as error:
            raise DamagedFile(f"{file}: damaged ({_first_line(error)}); prepare again") from None
        if found != records:
            raise DamagedFile(
                f"{file}: {self._name} has {found} {self._kind}s, dataset.json says {records}; prepare again"
            )
        return reader

    def __len__(self) -> int:
        return int(self._begins[-1])

    def records(self, numbers: np.ndarray) -> list[bytes]:
        """Records as they are stored."""
        order = np.argsort(numbers)  # in their order on disk
        records, numbers = [b""] * len(numbers), numbers[order]
        files = np.searchsorted(self._begins, numbers, side="right") - 1  # few of what may be thousands
        begins = run_begins(files)
        for first, last in itertools.pairwise([*begins, len(numbers)]):
            file = int(files[first])
            reader = self._readers[file]
            in_file = (numbers[first:last] - self._begins[file]).tolist()
            try:
                with self._locks[file]:
                    for place, number in zip(order[first:last].tolist(), in_file, strict=True):
                        reader.seek(number)
                        records[place] = reader.read()
            except Exception as error:
                raise self.damaged(int(self._begins[file]) + number, error) from None
        return records

    def damaged(self, number: int, error: Exception) -> DamagedFile:
        """What to raise for a damaged record."""
        file = self._files[np.searchsorted(self._begins, number, side="right") - 1]
        reason = _first_line(error)
        return DamagedFile(f"{file}: {self._kind} {number} of {self._name} is damaged: {reason}; prepare again")


class Rows(RecordFiles):
    """The rows of a pool, as a sequence of structured scalars of `batch.row_dtype`."""

    def __init__(self, name: str, files: Sequence[Path], file_rows: Sequence[int], length: int, decode: Decode):
        """Opens the files.

        Args:
          name: of the pool, for messages.
          file_rows: the number of rows in each file.
          length: tokens a row.

        Raises:
          FileError: if files are missing or damaged. A damaged row raises when it is read.
        """
        super().__init__(name, "row", files, file_rows, buffer_size=2 * length + 512)
        self._decode, self._dtype = decode, row_dtype(length)

    def __getitem__(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        row = np.empty((), self._dtype)
        for name, field in self.batch(np.array([number]))._asdict().items():
            row[name] = field[0]
        return row

    def batch(self, numbers: np.ndarray) -> Batch:
        """Rows as arrays `[n, length]`."""
        return read_batch([self], np.zeros_like(numbers), numbers)

    def check(self, number: int, record: bytes) -> None:
        """Raises `DamagedFile` if the bytes of a row are damaged."""
        try:
            self._decode([record])
        except ValueError as error:
            raise self.damaged(number, error) from None


def read_batch(pools: Sequence[Rows], pool_of_row: np.ndarray, numbers: np.ndarray) -> Batch:
    """Rows of several pools, prepared together, as arrays `[n, length]`.

    Args:
      pool_of_row: int64 `[n]`, index of the pool of each row.
      numbers: int64 `[n]`, its number in the pool.
    """
    records = [b""] * len(numbers)
    for index in np.unique(pool_of_row).tolist():
        here = np.flatnonzero(pool_of_row == index)
        for place, record in zip(here.tolist(), pools[index].records(numbers[here]), strict=True):
            records[place] = record
    try:
        return pools[0]._decode(records)
    except ValueError:
        for index, number, record in zip(pool_of_row.tolist(), numbers.tolist(), records, strict=True):
            pools[index].check(number, record)
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".; ")


def _allow_open_files(count: int) -> None:
    """Raises the number of files that this process may have open, which Linux limits to 1,024 at first."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = count + 512 if hard == resource.RLIM_INFINITY else min(count + 512, hard)
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ImportError, OSError, ValueError):
        pass  # opening them says what is wrong
