"""A reference runtime for Core ML packages: reads a saved .mlpackage and runs it in numpy."""
