"""Reports of benchmarks: the document, what it looks like, and what two of them say together."""
