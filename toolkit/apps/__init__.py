"""Programs on top of the library: demo, workshop, GPU check, command line."""
