"""Where the training sets of HTTP requests lie, and which spines such a request may name.

    <root>/<id>/spine.parquet    the spine as it was uploaded (spine.arrow: as an Arrow stream)
    <root>/<id>/made/            the training set (training_files.py)

A request is read with the rights of the platform, so it may only name what lies below a root that the settings allow.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from featurelib.clock import Instant
from featurelib.errors import Conflict, InvalidRequest, QuotaExceeded, StoreUnavailable
from featurelib.stores.spine_sources import opened, shown_url
from featurelib.stores.training_files import MANIFEST, Manifest, read_manifest
from featurelib.stores.training_requests import TRAINING_ID

UploadForm = Literal["parquet", "arrow"]
"""How an uploaded spine is stored; ``arrow`` is an IPC stream."""

_UPLOADS: tuple[UploadForm, ...] = ("parquet", "arrow")
_READ_BYTES = 1 << 20
_ROWS_SENT = 16_384


def allowed_spine(given: str, roots: Sequence[str]) -> str:
    """What to open for the spine that a request names.

    Args:
        given: path or URL.
        roots: folders and URLs below which it may lie.

    Raises:
        InvalidRequest: it lies below none of them.
    """
    for root in roots:
        found = _below(given, root)
        if found is not None:
            return found
    raise InvalidRequest(
        "spine: it lies below none of the folders and URLs that the setting training.spine_roots names; upload the "
        "rows as the body of the request, or have the folder added there"
    )


def _below(given: str, root: str) -> str | None:
    if "://" not in root:
        return _below_folder(given, root)
    try:
        asked = urlsplit(given)
    except ValueError:
        return None
    allowed = urlsplit(root)
    same_store = asked.scheme == allowed.scheme and asked.netloc == allowed.netloc.rpartition("@")[2]
    # Options of a URL may name another server: those of the setting are used, and none that a request brings.
    if not same_store or asked.query or asked.fragment:
        return None
    if asked.scheme == "file":
        return _below_folder(unquote(asked.path), unquote(allowed.path))
    folder, path = posixpath.normpath(allowed.path or "/"), posixpath.normpath(asked.path)
    # What opens it reads %2E%2E as `..`: a path that would then lead elsewhere is none.
    if unquote(path) != posixpath.normpath(unquote(path)) or not f"{path}/".startswith(f"{folder.rstrip('/')}/"):
        return None
    return urlunsplit((allowed.scheme, allowed.netloc, path, allowed.query, ""))


def _below_folder(given: str, root: str) -> str | None:
    if "://" in given or "\x00" in given:
        return None
    try:
        path = Path(given).expanduser().resolve()  # links are followed: what is opened must lie there
    except (OSError, RuntimeError):  # a home of nobody's, or links in a circle
        return None
    return str(path) if path.is_relative_to(Path(root).expanduser().resolve()) else None


def is_csv_above(url: str, most: int) -> bool:
    """Whether a spine is a CSV file of more bytes than that.

    Raises:
        InvalidRequest: it is no URL of a store known here.
        StoreUnavailable: the object store does not answer.
    """
    if not url.partition("?")[0].lower().endswith((".csv", ".tsv")):
        return False
    files, path = opened(url, "spine")
    try:
        size = files.get_file_info(path).size
    except OSError as error:
        raise StoreUnavailable(f"the spine {shown_url(url)} cannot be read: {error}") from error
    return size is not None and size > most


class TrainingPlace:
    """The folder of one training set.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the folder cannot be read
    or written; a full disk is one of the reasons.

    Args:
        root: a folder or an object-store URL, of all such folders.
        training_id: of the training set.
    """

    def __init__(self, root: str, training_id: str) -> None:
        self._files, path = opened(root, "training.url")
        self._id = training_id
        self._path = f"{path}/{training_id}"
        self._url = self._path if isinstance(self._files, fs.LocalFileSystem) else f"{root.rstrip('/')}/{training_id}"

    @property
    def output(self) -> str:
        """The folder of the training set itself."""
        return f"{self._url}/made"

    @property
    def manifest_url(self) -> str:
        """Where its manifest is, once it is whole."""
        return f"{self._url}/made/{MANIFEST}"

    def spine(self) -> str:
        """Where the uploaded spine is.

        Raises:
            Conflict: none was uploaded.
        """
        with _telling(f"training set {self._id}"):
            for form in _UPLOADS:
                if self._files.get_file_info(f"{self._path}/spine.{form}").type == fs.FileType.File:
                    return f"{self._url}/spine.{form}"
        raise Conflict(f"the uploaded spine of training set {self._id} is gone")

    def receiving(self, form: UploadForm, room: Room | None = None) -> Upload:
        """Begin to keep an uploaded spine, for which there is so much room; ``None``: any."""
        with _telling(f"training set {self._id}"):
            self._files.create_dir(self._path, recursive=True)
            return Upload(self._id, self._files.open_output_stream(f"{self._path}/spine.{form}"), room)

    def manifest(self) -> Manifest | None:
        """What the training set was made of; ``None``: it is not there."""
        with _telling(f"training set {self._id}"):
            found = self._files.get_file_info(f"{self._path}/made/{MANIFEST}")
        return None if found.type == fs.FileType.NotFound else read_manifest(self.manifest_url)

    def parquet(self) -> Iterator[bytes]:
        """The rows as the Parquet file they are stored in, part by part."""
        with _telling(f"training set {self._id}"), self._files.open_input_stream(self._data) as stream:
            while part := stream.read(_READ_BYTES):
                yield part

    def batches(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The columns of the rows, and the rows, some at a time."""
        with _telling(f"training set {self._id}"):
            file = pq.ParquetFile(self._data, filesystem=self._files)
        return file.schema_arrow, self._read(file)

    def remove(self) -> None:
        """Delete the folder and everything in it; one that is not there is none."""
        with _telling(f"training set {self._id}"):
            if self._files.get_file_info(self._path).type != fs.FileType.NotFound:
                self._files.delete_dir(self._path)

    @property
    def _data(self) -> str:
        return f"{self._path}/made/data.parquet"

    def _read(self, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
        with _telling(f"training set {self._id}"), file:
            yield from file.iter_batches(_ROWS_SENT)


class Room:
    """What may still be kept below the root of all training sets.

    Args:
        kept: bytes that are kept there.
        most: bytes that may be.
    """

    def __init__(self, kept: int, most: int) -> None:
        self._kept = kept
        self._most = most

    def check(self) -> None:
        """Refuse what is yet to be asked for.

        Raises:
            QuotaExceeded: there is none left.
        """
        self.take(1)
        self._kept -= 1

    def take(self, count: int) -> None:
        """Take so many bytes of it.

        Raises:
            QuotaExceeded: there are fewer.
        """
        self._kept += count
        if self._kept > self._most:
            raise QuotaExceeded(
                f"uploaded spines and training sets would take {self._kept:,} bytes, and training.kept_bytes is "
                f"{self._most:,}: delete some, or wait until training.keep_days has them deleted"
            )


def room_below(root: str, most: int) -> Room:
    """The room that there is for training sets, of so many bytes.

    Raises:
        StoreUnavailable: the root cannot be read.
    """
    files, path = opened(root, "training.url")
    # Jobs delete their work while it is counted.
    with _telling("all training sets"):
        found = files.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    # What others keep below the same root is not of training sets.
    own = (each for each in found if TRAINING_ID.fullmatch(each.path.removeprefix(f"{path}/").partition("/")[0]))
    return Room(sum(each.size or 0 for each in own), most)


def uploaded_before(root: str, instant: Instant) -> list[str]:
    """Names of the folders below a root in which an upload, and nothing since, was written before an instant.

    Raises:
        StoreUnavailable: the root cannot be read.
    """
    files, path = opened(root, "training.url")
    with _telling("all training sets"):
        if files.get_file_info(path).type == fs.FileType.NotFound:
            return []
        folders = [each for each in files.get_file_info(fs.FileSelector(path)) if each.type == fs.FileType.Directory]
        found = {each.base_name: files.get_file_info(fs.FileSelector(each.path)) for each in folders}
    return [name for name, inside in found.items() if inside and all(_is_old_upload(each, instant) for each in inside)]


def _is_old_upload(info: fs.FileInfo, instant: Instant) -> bool:
    # Whatever else lies there, a training set's own folder or what others keep below the same root, is no upload.
    named = info.type == fs.FileType.File and info.base_name in {f"spine.{form}" for form in _UPLOADS}
    return named and info.mtime_ns is not None and info.mtime_ns // 1_000 < instant


class Upload:
    """A spine that is being uploaded."""

    def __init__(self, training_id: str, stream: pa.NativeFile, room: Room | None) -> None:
        self._id = training_id
        self._stream = stream
        self._room = room

    def write(self, piece: bytes) -> None:
        """Keep some more of it.

        Raises:
            QuotaExceeded: there is no room for it.
            StoreUnavailable: it cannot be written; a full disk is one of the reasons.
        """
        if self._room is not None:
            self._room.take(len(piece))
        with _telling(f"training set {self._id}"):
            self._stream.write(piece)

    def close(self) -> None:
        """Say that this was all of it.

        Raises:
            StoreUnavailable: it cannot be written.
        """
        with _telling(f"training set {self._id}"):
            self._stream.close()


@contextmanager
def _telling(whose: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        message = f"the folder of {whose} cannot be read or written: {error}"
        raise StoreUnavailable(message) from error
