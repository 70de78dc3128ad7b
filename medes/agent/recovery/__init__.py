"""What a starting agent does with what the one before left."""
