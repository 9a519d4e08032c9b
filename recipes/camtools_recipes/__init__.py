"""Recipes: fine-tuning and evaluation protocols on camtools, found through the entry point `camtools.recipes`."""
