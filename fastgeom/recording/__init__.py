"""From device to file: rows are copied asynchronously, wait for late fields, and are written by a thread."""
