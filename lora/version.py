"""Of this project, for the metadata of the files it writes; pyproject.toml says the same."""

VERSION = "0.1.0"
