"""Engines: the same few calls over a layout, on the device where the tensors lie."""
