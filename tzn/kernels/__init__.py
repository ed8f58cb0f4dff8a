"""Triton device code and its launchers. Imported only by implementations of ops; knows nothing of autograd or modules."""
