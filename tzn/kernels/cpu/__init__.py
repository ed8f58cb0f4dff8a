"""What the compiled CPU kernels (``torch.ops.tzn_native``) leave to PyTorch: products, layouts, order of calls."""
