"""Checks of `oneloop verify`: real runs of a recipe, and what must hold among them."""
