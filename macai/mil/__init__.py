"""A reference runtime for Core ML packages: reads a saved .mlpackage and runs it in numpy.

It shares no code with the exporter, so that it can judge what the exporter writes.
"""

from macai.mil.features import Range as Range
from macai.mil.features import TensorSpec as TensorSpec
from macai.mil.frame import Overflow as Overflow
from macai.mil.function import Function as Function
from macai.mil.function import Result as Result
from macai.mil.package import Package as Package
from macai.mil.package import open_package as open_package

__all__ = ["Function", "Overflow", "Package", "Range", "Result", "TensorSpec", "open_package"]
