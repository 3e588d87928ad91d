"""Histories of past gradients: the gradients themselves, or sketches of them."""
