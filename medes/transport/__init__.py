"""How base pages of peers are read: RDMA sessions of a node, and the pyverbs reference peer."""
