"""Every bound of the Python side in one place (the native core's are in native/common/limits.h)."""

GRPC_MESSAGE_BYTES_MAX = 256 << 20  # answering a lookup of LOOKUP_PAGES_MAX pages at k = 8 takes half of it
API_REQUEST_BYTES_MAX = 1 << 20  # of the restore API: the largest is a Register of PIDS_PER_SANDBOX_MAX
LOOKUP_PAGES_MAX = 1 << 20
SANDBOXES_PER_NODE_MAX = 100_000
PIDS_PER_SANDBOX_MAX = 4096
BASES_PER_NODE_MAX = 10_000
HOLDERS_PER_BASE_MAX = 16
CONTROLLERS_MAX = 16  # that an agent knows of
FUNCTION_ROWS_MAX = 256  # (function, tenant) pairs that a node reports one by one; the rest are one row
REMOTE_BASES_MAX = 10_000  # of other nodes, whose fingerprints an agent keeps
FINGERPRINT_PART_PAGES_MAX = 1 << 16  # in one message between agents: 9.4 MB at k = 16
FINGERPRINT_CALLS_QUEUED_MAX = 64  # under way (one) and waiting at a holder
NODES_MAX = 10_000
NAME_CHARS_MAX = 200
SUBJECT_CHARS_MAX = 4096  # by which a driver without processes knows a sandbox
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
OFFER_BYTES_MAX = 4096  # what a page transport says of itself when it asks a peer for access
PERIOD_MS_MAX = 365 * 86400 * 1000  # of a lifecycle: a year
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
EVICTION_LOOK_S = 0.5  # between two looks at whether an eviction is held up
EVICTION_ANSWER_S = 20.0  # then its callers are answered, held up or not
TAKE_BACK_BUSY_RETRY_S = 2.0  # at most, where it is held by a frozen cgroup
RESTORE_READY_TIMEOUT_S = 60.0  # until the sandbox of a restore runs
RESTORE_WAIT_S = 600.0  # how long a call waits for the end of a restore that others began
PURGE_KILL_TIMEOUT_S = 10.0  # until killed processes are gone
ORPHANS_LISTED_MAX = 10_000
FOLDER_LINKS_MAX = 40  # symbolic links on the way to a folder
EVALUATION_FILE_BYTES_MAX = 64 << 20
EVALUATION_LINE_BYTES_MAX = 16 << 10
EVALUATION_RECORDS_MAX = 200_000  # of a file, repetitions included
EVALUATION_REPETITIONS_MAX = 1000
EVALUATION_ATTEMPTS_MAX = 3  # of one repetition that fails for reasons that pass
EVALUATION_LABELS_MAX = 16
EVALUATION_NAME_CHARS_MAX = 100  # of a figure or a case
EVALUATION_REASON_CHARS_MAX = 500
DIAG_SOCKETS_MAX = 1 << 17  # connections of a network namespace that are looked at
