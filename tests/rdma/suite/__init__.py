"""Tests that need an RDMA device. They run inside the guest (tests/rdma/vm) or on a machine that has one."""
