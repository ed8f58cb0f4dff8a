"""A program for every figure that we claim: README.md lists them.

Run from the repository's root: ``python -m benchmarks.NAME``.
"""
