"""Data: manifests, volumes and their geometry, tasks, loaders and embedded phantoms."""
