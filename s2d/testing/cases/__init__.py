"""The inputs of every operator, one file a room: what the tests check is what the benchmarks time."""
