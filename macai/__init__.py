"""Tune a model on your Mac, ship it to every Apple device."""

__version__ = "0.1.0"
