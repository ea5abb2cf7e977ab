"""Adds the registry's service to a server. The calls that carry a blob's bytes pass them on as they are."""

from __future__ import annotations

import grpc

from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry.serve.service import RegistryServicer
from weft_registry.wire.chunks import READ_BLOB, SERVICE, WRITE_UPLOAD, piece_of, response_of


def add_registry_service(servicer: RegistryServicer, server: grpc.aio.Server) -> None:
    """Before the server starts."""
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)
    # What is registered last answers.
    handlers = {
        READ_BLOB: grpc.unary_stream_rpc_method_handler(
            servicer.ReadBlob, request_deserializer=pb.ReadBlobRequest.FromString, response_serializer=response_of
        ),
        WRITE_UPLOAD: grpc.stream_unary_rpc_method_handler(
            servicer.WriteUpload,
            request_deserializer=piece_of,
            response_serializer=pb.WriteUploadResponse.SerializeToString,
        ),
    }
    server.add_registered_method_handlers(SERVICE, handlers)  # type: ignore[attr-defined]
