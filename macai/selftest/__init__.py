"""Proofs that training does here what it should: on this machine, on its backend.

`macai selftest` prints them and the tests run the same code, each proof also with the defect it is
there for. A family of proofs is a module that ends in `PROOFS`.
"""
