"""What the papers claim, the studies that test it, and the trained networks that come with the project."""
