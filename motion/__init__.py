"""The model side of DiffDirector: usable from Python, without the graph."""
