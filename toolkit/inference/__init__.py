"""The one way in which a network meets an image: inputs, padding, windows, precision, the logits and what they mean."""
