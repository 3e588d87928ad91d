"""What every bench is made of: cases, the registry of statistics and their implementations, devices, clocks, rounds."""
