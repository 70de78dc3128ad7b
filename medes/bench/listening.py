"""A function instance behind a TCP port of its own, for baselines that cannot keep a connection to the benchmark
open over a checkpoint: `python -P -m medes.bench.listening {…}`. Prints its port, then serves one connection at a
time with the frames of the function host."""

import json
import socket
import sys
from types import SimpleNamespace

from medes.runtimes.instance import process as instance


def main() -> int:
    identity = SimpleNamespace(**json.loads(sys.argv[1]))
    sys.path.insert(0, identity.folder)
    handler = instance.load(identity.handler)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            instance.serve(connection, handler, identity)


if __name__ == "__main__":
    sys.exit(main())
