"""Read GGUF files: `converters/gguf.py` says which architectures, the modules here how."""
