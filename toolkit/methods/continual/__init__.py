"""Strategies of continual learning that need a regularizer: EWC and LwF."""
