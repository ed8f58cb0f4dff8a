"""tzn: temporal zoom networks, fused kernels and models for finding actions in time."""

__version__ = "0.1.0"
