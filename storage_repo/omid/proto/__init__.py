"""Generated protobuf code; `python -m storage_repo.generate` makes it from omid.proto."""
