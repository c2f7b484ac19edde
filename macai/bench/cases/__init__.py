"""What is measured: a module a section, each with one function that loads and lists its cases."""
