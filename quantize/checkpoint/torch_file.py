"""Read one file of `torch.save` through a mapping, without torch. Knows the container, not the model inside it.

Since PyTorch 1.6 such a file is a zip archive of uncompressed members: `<root>/data.pkl` lists the tensors (see
`torch_pickle.py`), `<root>/data/<key>` is the storage that a tensor lies in, and `<root>/byteorder` says "little".
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import FORMATS

from .stored_tensor import MappedFile, NameTest, StoredTensor, no_name
from .torch_pickle import DTYPES, TensorEntry, read_entries

MAX_DIRECTORY = 16 << 20  # bytes of the archive's table of contents
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of name, length of extra field
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LIST = "data.pkl"


def read_torch(path: Path, unread: NameTest = no_name) -> dict[str, StoredTensor]:
    """Every tensor of the file at `path`, by name, in the order it was saved; but those that are `unread`.

    Raises CheckpointError naming file and tensor for anything but tensors, OSError if the file cannot be opened.
    """
    file = MappedFile(path)
    _refuse_other_kinds(file)
    members = _members(file)
    root = _root(path, members)
    if root + "constants.pkl" in members:
        raise CheckpointError(f"{path}: a TorchScript program, not a list of tensors; save its state_dict()")
    order = members.get(root + "byteorder")
    if order is not None and _content(file, order) != b"little":
        raise CheckpointError(f"{path}: written on a big-endian machine, which is not read")
    entries = read_entries(_content(file, members[root + LIST]), f"{path}: {LIST}")
    return {
        name: _tensor(file, name, entry, members.get(f"{root}data/{entry.storage.key}"))
        for name, entry in entries.items()
        if not unread(name)
    }


@dataclass(frozen=True)
class _Span:
    """Bytes of the file."""

    start: int
    stop: int


def _content(file: MappedFile, entry: zipfile.ZipInfo) -> bytes:
    span = _span(file, entry)
    return file.view(span.start, span.stop).tobytes()


def _refuse_other_kinds(file: MappedFile) -> None:
    begin = file.view(0, 1024).tobytes()
    if begin.startswith(LEGACY_MAGIC) or begin[257:262] == b"ustar":
        text = "saved in the way of PyTorch before 1.6, which is not read; convert it where PyTorch is installed: "
        raise CheckpointError(f"{file.path}: {text}torch.save(torch.load(path, weights_only=True), path)")
    if not begin.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{file.path}: not a file of torch.save")


class _BoundedFile(io.FileIO):
    """A file for `zipfile`, which reads as much at once as the archive asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"table of contents of {size} bytes; at most {MAX_DIRECTORY} are read")
        return super().read(MAX_DIRECTORY if size is None or size < 0 else size)


def _members(file: MappedFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's table of contents."""
    try:
        with _BoundedFile(file.path) as raw, zipfile.ZipFile(raw) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise CheckpointError(f"{file.path}: the archive is damaged or cut off: {error}") from None
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        if entry.orig_filename in members:
            raise CheckpointError(f"{file.path}: member {entry.orig_filename!r} appears twice")
        members[entry.orig_filename] = entry
    return members


def _span(file: MappedFile, entry: zipfile.ZipInfo) -> _Span:
    """Where the content of a member lies."""
    where = f"{file.path}: member {entry.orig_filename!r}"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise CheckpointError(f"{where} is compressed or encrypted; torch.save does neither")
    start = entry.header_offset
    if not 0 <= start <= len(file) - LOCAL_HEADER.size:
        raise CheckpointError(f"{where} begins at byte {start} of {len(file)}")
    signature, name, extra = LOCAL_HEADER.unpack(file.view(start, start + LOCAL_HEADER.size).tobytes())
    start += LOCAL_HEADER.size + name + extra
    if signature != b"PK\x03\x04" or start + entry.file_size > len(file):
        raise CheckpointError(f"{where} is not where the table of contents has it (cut off?)")
    return _Span(start, start + entry.file_size)


def _root(path: Path, members: dict[str, zipfile.ZipInfo]) -> str:
    roots = [name.removesuffix(LIST) for name in members if name == LIST or name.endswith("/" + LIST)]
    if len(roots) != 1:
        raise CheckpointError(f"{path}: {len(roots)} members {LIST} in the archive; torch.save writes one")
    return roots[0]


def _tensor(file: MappedFile, name: str, entry: TensorEntry, member: zipfile.ZipInfo | None) -> StoredTensor:
    where, storage = f"{file.path}: tensor {name!r}", entry.storage
    if storage.dtype not in DTYPES:
        raise CheckpointError(f"{where} has a {storage.dtype}; F32, F16 and BF16 are read")
    form = FORMATS[DTYPES[storage.dtype]]
    if member is None:
        raise CheckpointError(f"{where}: its storage {storage.key[:80]!r} is not in the archive")
    span = _span(file, member)
    size = span.stop - span.start
    if size != storage.length * form.nbytes:
        raise CheckpointError(f"{where}: its storage has {size} bytes, not {storage.length} values of {form.name}")
    _check_layout(entry, where)
    return StoredTensor(name, file, form, entry.shape, span.start + entry.offset * form.nbytes)


def _check_layout(entry: TensorEntry, where: str) -> None:
    if not entry.shape:
        raise CheckpointError(f"{where}: bad shape ()")
    step = 1
    for size, stride in zip(reversed(entry.shape), reversed(entry.strides), strict=True):
        if size > 1 and stride != step:
            text = "is a view with gaps or transposed; save it with .contiguous()"
            raise CheckpointError(f"{where} of shape {list(entry.shape)} and strides {list(entry.strides)} {text}")
        step *= size
    if entry.offset + math.prod(entry.shape) > entry.storage.length:
        raise CheckpointError(f"{where} ends beyond its storage of {entry.storage.length} values")
