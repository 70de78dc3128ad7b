"""RDMA: connections of a node kept up and taken back, and the pyverbs reference peer."""
