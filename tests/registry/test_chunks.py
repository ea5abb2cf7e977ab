"""The messages that carry chunks are protobuf's, whoever writes and whoever reads them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from weft.v1 import registry_pb2 as pb
from weft_registry.wire.chunks import UploadPiece, chunk_of, piece_of, request_of, response_of

CHUNKS = st.one_of(st.binary(max_size=300), st.integers(0, 3).map(lambda i: bytes([i]) * (1 << 7 * i)))
PIECES = st.builds(
    UploadPiece,
    st.text(st.characters(codec="utf-8"), max_size=200),
    st.one_of(st.integers(0, 300), st.integers(-(1 << 63), (1 << 63) - 1)),
    CHUNKS,
    st.booleans(),
)


def in_words(message: pb.WriteUploadRequest) -> UploadPiece:
    return UploadPiece(message.upload_id, message.offset_bytes, message.chunk, message.finish)


@given(CHUNKS)
def test_a_response_is_protobufs(chunk: bytes) -> None:
    assert pb.ReadBlobResponse.FromString(response_of(chunk)).chunk == chunk
    assert chunk_of(response_of(chunk)) == chunk
    assert chunk_of(pb.ReadBlobResponse(chunk=chunk).SerializeToString()) == chunk


@given(PIECES)
def test_a_request_is_protobufs(piece: UploadPiece) -> None:
    assert in_words(pb.WriteUploadRequest.FromString(request_of(piece))) == piece
    assert piece_of(request_of(piece)) == piece
    message = pb.WriteUploadRequest(
        upload_id=piece.upload_id, offset_bytes=piece.offset_bytes, chunk=piece.chunk, finish=piece.finish
    )
    assert piece_of(message.SerializeToString()) == piece


@given(st.lists(PIECES, max_size=3), st.binary(max_size=20))
def test_whatever_protobuf_makes_of_odd_bytes_is_made_of_them(pieces: list[UploadPiece], rest: bytes) -> None:
    """Several messages in one, in which the last of each field counts, and bytes that may be no message."""
    data = b"".join(request_of(piece) for piece in pieces) + rest
    for ours, theirs in (
        (piece_of, lambda written: in_words(pb.WriteUploadRequest.FromString(written))),
        (chunk_of, lambda written: pb.ReadBlobResponse.FromString(written).chunk),
    ):
        try:
            expected = theirs(data)
        except DecodeError:
            with pytest.raises(DecodeError):
                ours(data)
        else:
            assert ours(data) == expected


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(b"\x9a\x00\x01a", id="a tag in two bytes"),
        pytest.param(b"\x1a\x81\x00a", id="a length in two bytes where one would do"),
        pytest.param(b"\x1a\x01a\x1a\x02bc", id="two chunks"),
        pytest.param(b"\x1a\x00", id="an empty chunk"),
        pytest.param(b"\x1a\x01a\x1a\x00", id="an empty chunk after one"),
        pytest.param(b"\x1a\x01a\x7a\x01b", id="a field of a later version after the chunk"),
        pytest.param(b"\x7a\x01b\x1a\x01a", id="a field of a later version before the chunk"),
        pytest.param(b"\x0a\x05a", id="an upload id past the end"),
        pytest.param(b"\x1a\x05a", id="a chunk past the end"),
        pytest.param(b"\x1a" + b"\xff" * 11, id="a length without end"),
        pytest.param(b"\x1a" + b"\xff" * 9 + b"\x01a", id="a length of 64 bits"),
        pytest.param(b"\x1a\x81\x80\x80\x80\x10a", id="a length of 33 bits"),
        pytest.param(b"\x0a\x01\xff\x1a\x01a", id="an upload id that is no text"),
        pytest.param(b"\x10" + b"\x80" * 9 + b"\x02\x1a\x01a", id="an offset of 65 bits"),
        pytest.param(b"\x0a\x01\x1a\x1a\x01a", id="an upload id that looks like a chunk"),
        pytest.param(b"\x18\x01\x1a\x01a", id="a number where a chunk should be"),
    ],
)
def test_odd_forms_are_read_as_protobuf_reads_them(odd: bytes) -> None:
    test_whatever_protobuf_makes_of_odd_bytes_is_made_of_them.hypothesis.inner_test([], odd)  # type: ignore[attr-defined]
