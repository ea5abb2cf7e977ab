"""The registry for others: gRPC, and the process that answers both faces."""
