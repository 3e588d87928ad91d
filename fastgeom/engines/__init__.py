"""Engines: measure gradients on the device where they lie, behind one protocol."""
