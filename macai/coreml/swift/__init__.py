"""The Swift package of an exported language model: typed API, chat program, app, tests."""

from macai.coreml.swift.package import write_swift_package

__all__ = ["write_swift_package"]
