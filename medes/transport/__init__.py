"""How base pages of peers are read: a folder each transport."""
