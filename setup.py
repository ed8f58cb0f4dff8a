"""Nothing to compile yet: compiled kernels will be optional extensions added here."""

from setuptools import setup

setup()
