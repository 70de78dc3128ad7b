"""Which nodes and sandboxes there are, and what each node may hear of."""
