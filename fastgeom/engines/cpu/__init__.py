"""The CPU engine: compiled loops over tensors in CPU memory, on several threads."""
