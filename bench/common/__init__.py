"""What every bench is made of: cases, the ways of measuring them, the devices they run on, clocks and rounds."""
