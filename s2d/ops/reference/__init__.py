"""The definition of every operator in plain torch: slow, short, obviously right."""
