"""Generated protobuf and gRPC code; `python -m messaging.generate` makes it from adsindex.proto."""
