"""Features: layer names, scoped capture, extraction and the store on disk."""
