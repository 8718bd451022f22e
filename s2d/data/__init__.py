"""Videos in, and the data that flows between the stages."""
