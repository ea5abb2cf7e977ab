"""The messages that carry a blob's bytes, written and read without protobuf's own objects in between.

They are `ReadBlobResponse` and `WriteUploadRequest` of registry.proto. protobuf copies the bytes of a message into
memory of its own and out of it again, both where it is made and where it is read, and holds Python's lock meanwhile:
a third of what a gigabyte costs over gRPC. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from weft.v1 import registry_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name
READ_BLOB, WRITE_UPLOAD = "ReadBlob", "WriteUpload"

# A field's tag: its number, and how its value is written (0: a number in groups of seven bits, 2: bytes after their
# length).
_RESPONSE_CHUNK = 1 << 3 | 2
_UPLOAD_ID, _OFFSET, _CHUNK, _FINISH = 1 << 3 | 2, 2 << 3 | 0, 3 << 3 | 2, 4 << 3 | 0
_MAX_NUMBER_BYTES = 10


@dataclass(frozen=True, slots=True)
class UploadPiece:
    """What one message of an upload says: `WriteUploadRequest`."""

    upload_id: str
    offset_bytes: int
    chunk: bytes
    finish: bool


def response_of(chunk: bytes) -> bytes:
    """A `ReadBlobResponse`, written."""
    return b"".join((bytes((_RESPONSE_CHUNK,)), _number(len(chunk)), chunk))


def chunk_of(response: bytes) -> bytes:
    """The chunk of a written `ReadBlobResponse`. Raises `google.protobuf.message.DecodeError` for bytes that are
    none."""
    try:
        if response[0] == _RESPONSE_CHUNK:
            size, at = _read_number(response, 1)
            if at + size == len(response):
                return response[at:]
    except IndexError:
        pass
    # Empty, of a later version of the protocol, or no message at all.
    return pb.ReadBlobResponse.FromString(response).chunk


def request_of(piece: UploadPiece) -> bytes:
    """A `WriteUploadRequest`, written."""
    rest = pb.WriteUploadRequest(upload_id=piece.upload_id, offset_bytes=piece.offset_bytes, finish=piece.finish)
    written = rest.SerializeToString()
    if not piece.chunk:
        return written
    return b"".join((written, bytes((_CHUNK,)), _number(len(piece.chunk)), piece.chunk))


def piece_of(request: bytes) -> UploadPiece:
    """What a written `WriteUploadRequest` says. Raises as `chunk_of`."""
    begin = end = at = 0
    try:
        while at < len(request):
            tag = request[at]
            value, place = _read_number(request, at + 1)
            if tag == _CHUNK:
                begin, end = place, place + value
                break
            if tag not in (_UPLOAD_ID, _OFFSET, _FINISH):
                break
            at = place + value if tag == _UPLOAD_ID else place
    except IndexError:
        pass
    # What is around the chunk is a small message by itself. Where more than `finish` follows, it may be another chunk,
    # which would count instead: protobuf reads that, and whatever is no message.
    after = request[end:]
    if end and end <= len(request) and (not after or (len(after) == 2 and after[0] == _FINISH)):
        rest = pb.WriteUploadRequest.FromString(request[:at] + after)
        return UploadPiece(rest.upload_id, rest.offset_bytes, request[begin:end], rest.finish)
    whole = pb.WriteUploadRequest.FromString(request)
    return UploadPiece(whole.upload_id, whole.offset_bytes, whole.chunk, whole.finish)


class ChunkCalls:
    """The calls of a channel that carry chunks."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.read_blob: Any = channel.unary_stream(
            f"/{SERVICE}/{READ_BLOB}",
            request_serializer=pb.ReadBlobRequest.SerializeToString,
            response_deserializer=chunk_of,
        )
        """From a `ReadBlobRequest` to chunks."""
        self.write_upload: Any = channel.stream_unary(
            f"/{SERVICE}/{WRITE_UPLOAD}",
            request_serializer=request_of,
            response_deserializer=pb.WriteUploadResponse.FromString,
        )
        """From `UploadPiece`s to a `WriteUploadResponse`."""


def _number(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """A number, and the place after it. Raises `IndexError` where it does not end."""
    value = 0
    for index in range(_MAX_NUMBER_BYTES):
        group = data[at + index]
        value |= (group & 0x7F) << 7 * index
        if group < 0x80:
            return value, at + index + 1
    raise IndexError("a number of more than 64 bits")
