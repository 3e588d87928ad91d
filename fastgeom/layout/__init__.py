"""The measured tensors: their layers, addresses and chunks, and the count sketch of them."""
