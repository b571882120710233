"""The operators in plain PyTorch: the definition that every other implementation is held to, and the fallback."""
