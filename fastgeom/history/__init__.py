"""What is remembered of past gradients: the gradients themselves, or sketches of them."""
