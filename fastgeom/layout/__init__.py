"""What lies where: the measured tensors, their addresses, their cut into chunks, and the count sketch."""
