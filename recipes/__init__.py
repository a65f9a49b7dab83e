"""Recipes: train, evaluate, predict and export for each task; the `polyhead` command."""
