"""Training: config, dataset, objectives, loop and checkpoints, and one recipe per stage."""
