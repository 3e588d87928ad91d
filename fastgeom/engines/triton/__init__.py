"""The Triton engine: launches of `fastgeom.kernels` over tensors on a GPU."""
