"""`medes demo`: a small cluster on this machine, real functions in it, and what dedup and restore do to them."""
