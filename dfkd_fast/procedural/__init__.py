"""Pictures that nobody has photographed: random generators, and the choice of pictures by a teacher's votes."""
