"""What `oneloop verify` tries: real runs of a recipe, and what must hold among them."""
