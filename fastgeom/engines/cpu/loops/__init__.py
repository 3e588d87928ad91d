"""The CPU engine's compiled loops: numba, and nothing else."""
