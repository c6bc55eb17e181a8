"""Training: configuration, the step, the loop, run directories, resume, sequences and prediction."""
