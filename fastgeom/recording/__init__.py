"""Recording: rows are copied to the host asynchronously, completed with late fields, and written by a thread."""
