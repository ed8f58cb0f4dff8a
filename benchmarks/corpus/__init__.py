"""A corpus of 20,000 synthetic recordings on this machine; ``__main__`` says more."""
