"""gRPC: channels, servers, error mapping, TLS, and conversion between messages and medes.types.

The generated stubs are `medes.rpc.gen` (made by the build from proto/). Only this package and the servicers
touch protobuf types.
"""

import os

# gRPC's fork handlers only print warnings where daemons start programs (which exec at once, and so need none).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
