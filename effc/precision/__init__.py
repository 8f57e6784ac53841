"""Choosing the numbers of an artifact: what each node costs and gains, and the recipe that follows."""
