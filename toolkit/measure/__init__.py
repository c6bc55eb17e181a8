"""Measure: segmentation metrics, similarity, projection, drift, transfer and statistics."""
