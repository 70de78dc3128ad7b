"""Other agents as this one calls them."""
