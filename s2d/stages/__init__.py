"""The stages: each one file, one function and one command."""
