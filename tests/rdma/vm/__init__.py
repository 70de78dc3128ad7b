"""A QEMU guest with a Soft-RoCE device, on the host's own root file system: the RDMA path's test bench."""
