"""Benchmarks against eager PyTorch, ``torch.compile`` and named peers: ``make bench`` or ``python -m benchmarks``."""
