"""What several reproductions share: data, networks, exact full-batch gradients, and the command line's manners."""
