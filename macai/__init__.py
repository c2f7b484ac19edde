"""Tune a model on your Mac, ship it to every Apple device.

Importing macai, or anything in it, on Linux loads a fast BLAS before MLX: see `macai.models.blas`.
"""

import macai.models as models

__version__ = "0.1.0"

__all__ = ["__version__", "models"]
