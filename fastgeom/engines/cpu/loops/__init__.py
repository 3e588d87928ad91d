"""The CPU engine's compiled loops: compiled code, and nothing else."""
