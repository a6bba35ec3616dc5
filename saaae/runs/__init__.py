"""A run and its folder: training, checkpoints, weights, reports, several processes."""
