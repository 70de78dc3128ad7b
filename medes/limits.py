"""Every bound of the Python side in one place (the native core's are in native/common/limits.h)."""

GRPC_MESSAGE_BYTES_MAX = 256 << 20  # answering a lookup of LOOKUP_PAGES_MAX pages at k = 8 takes half of it
API_REQUEST_BYTES_MAX = 1 << 20  # of the restore API: the largest is a Register of PIDS_PER_SANDBOX_MAX
LOOKUP_PAGES_MAX = 1 << 20
SANDBOXES_PER_NODE_MAX = 100_000
PIDS_PER_SANDBOX_MAX = 4096
BASES_PER_NODE_MAX = 10_000
FUNCTION_ROWS_MAX = 256  # (function, tenant) pairs that a node reports one by one; the rest are one row
REMOTE_BASES_MAX = 10_000  # of other nodes, whose fingerprints an agent keeps
FINGERPRINT_PART_PAGES_MAX = 1 << 16  # in one message between agents: 9.4 MB at k = 16
FINGERPRINT_CALLS_QUEUED_MAX = 64  # under way (one) and waiting at a holder
NODES_MAX = 10_000
NAME_CHARS_MAX = 200
NODE_CHARS_WITH_USERS_MAX = 180  # a user's domain is uid-NUMBER.NODE
USER_CONNECTIONS_MAX = 512  # over the user socket
USER_CONNECTIONS_EACH_MAX = 16
USER_WATCHES_MAX = 4  # of one user
USER_BYTES_PER_S_MAX = 4 << 20  # of one user's calls and answers
WATCHERS_MAX = 256
WATCH_QUEUE_EVENTS_MAX = 10_000
RESTORES_QUEUED_MAX = 4096
DEDUPS_QUEUED_MAX = 4096
ACTIVITIES_WAITING_MAX = 4096  # begun requests of one caller whose sandboxes are being restored
WORKING_SET_PAGES_MAX = 1 << 18
RPC_TIMEOUT_S = 30.0
EVENT_BYTES_MAX = 6 << 20  # a function's request or response, as AWS Lambda
ADDRESS_RANGES_MAX = 8  # of a base; kMaxRanges in native/common/limits.h
ADDRESS_CHARS_MAX = 300  # of a node's host:port
TRANSPORTS_PER_NODE_MAX = 8
PAGE_TOKEN_S_MAX = 86400.0
BASE_RESERVATIONS_MAX = 100_000  # bases being made at once in the cluster
REGISTRY_CALLS_QUEUED_MAX = 128  # under way and waiting; each may hold a message of tens of MB
RPCS_CONCURRENT_MAX = 1024  # per server, streams included
LATENCY_SAMPLES_MAX = 4096  # over which quantiles are shown
ERROR_TEXT_CHARS_MAX = (
    500  # gRPC refuses metadata above 8 KiB: texts of an error are cut before they are sent
)
LOG_FIELD_CHARS_MAX = 2000
TLS_FILE_BYTES_MAX = 1 << 20
SETTINGS_FILE_BYTES_MAX = 1 << 20
JOURNAL_UNKNOWN_RECORDS_MAX = 10_000  # of a newer agent, kept for it
JOURNAL_WRITE_TIMEOUT_S = 10.0
TAKE_BACK_RETRY_S_FIRST, TAKE_BACK_RETRY_S_MAX = 0.5, 30.0  # of a sandbox that waits, doubling
RESTORE_READY_TIMEOUT_S = 60.0  # until the sandbox of a restore runs
RESTORE_WAIT_S = 600.0  # how long a call waits for the end of a restore that others began
PURGE_KILL_TIMEOUT_S = 10.0  # until killed processes are gone
ORPHANS_LISTED_MAX = 10_000
FOLDER_LINKS_MAX = 40  # symbolic links on the way to a folder
