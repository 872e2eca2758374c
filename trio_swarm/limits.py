"""Every cap, as a named constant with its precedent beside it.

Times are in seconds, sizes in bytes. Where a cap is a setting, a function takes it as a
keyword argument whose default is the constant here; nothing reads an environment variable.
"""

from __future__ import annotations

from typing import Final

# -- frames ----------------------------------------------------------------------------

MAX_FRAME: Final = 16 * 2**20
"""One frame. The operator and child contracts' frame limit (tungstenite's default)."""

MAX_POOL_LINE: Final = 64 * 2**20
"""One line of the pool protocol: results travel in it (pools contract, C2)."""

MAX_DEPTH: Final = 128
"""Nesting of one JSON document. Precedent: serde_json's recursion limit, so that what the originals
read is read here; far below the end of Python's own stack."""

MAX_FRAGMENTS: Final = 1024
"""Fragments of one WebSocket message. Precedent: websockets caps them too."""

# -- links -----------------------------------------------------------------------------

OUTGOING_FRAMES: Final = 64
"""Frames that wait for the writer before ``send`` waits. Precedent: NATS' bounded pending."""

INCOMING_FRAMES: Final = 64
"""Decoded frames that wait for the reader's user before the link stops reading."""

SEND_DEADLINE: Final = 10.0
"""How long one write may wait for a peer that does not read. Precedent: NATS, 10 s."""

HANDSHAKE_DEADLINE: Final = 10.0
"""From connect to an open link. Precedent: websockets, 10 s."""

CLOSE_DEADLINE: Final = 2.0
"""For the closing handshake; then the connection is cut."""

RECEIVE_BUFFER: Final = 64 * 2**10
"""Bytes asked for in one read: at 4 KiB large frames cost three times as much."""

# -- HTTP front ------------------------------------------------------------------------

MAX_HEAD: Final = 16 * 2**10
"""Request line and headers. Precedents: h11 and IIS, 16 KiB."""

MAX_BODY: Final = 2 * 2**20
"""Request body. The original's own limit (axum's default)."""

MAX_CONNECTIONS: Final = 256
"""Connections of one server at a time. One more lets the oldest go that shows no credential, is no
WebSocket and is not being answered, and is hung up on where there is none."""

SPARE_DESCRIPTORS: Final = 64
"""Of those that the process may open (its soft ``RLIMIT_NOFILE``), no server's connections take so many:
files, listeners, and answers to those who must go. macOS starts processes with 256."""

MIN_CONNECTIONS: Final = 16
"""A server has so many all the same, if it was not told to have fewer."""

MAX_UNPROVEN: Final = 16
"""Of these, such from one address that have shown no valid credential and need not hurry. Precedent:
sshd's MaxStartups, which begins to refuse at 10."""

HURRIED_DEADLINE: Final = 2.0
"""From connect to the end of a request's head, for one beyond ``MAX_UNPROVEN``; and again for its body.
For as long a request that shows no credential waits for its turn, where too many are answered."""

# -- correlation -----------------------------------------------------------------------

MAX_PENDING: Final = 1024
"""Requests of one seat that wait for their reply."""

SETTLED_REMEMBERED: Final = 4096
"""Settled request ids remembered, so that a duplicate is told from an unknown one."""

EVENTS_BUFFERED: Final = 256
"""Events kept for one subscriber before its overflow policy acts."""

# -- processes -------------------------------------------------------------------------

TERM_GRACE: Final = 2.0
"""From SIGTERM to SIGKILL."""

REAP_DEADLINE: Final = 10.0
"""For everything to be gone after SIGKILL; then the pids are raised."""

STDERR_TAIL: Final = 4096
"""Bytes of a child's standard error kept for its report."""

MAX_RESTARTS: Final = 3
"""Restarts within RESTART_WITHIN before a supervisor gives up. Precedent: OTP, 1 in 5 s."""

RESTART_WITHIN: Final = 60.0
"""The supervisor's window."""

BACKOFF_FIRST: Final = 0.1
"""Before the second restart in a window; the first is immediate, each later one waits twice as long."""

BACKOFF_CEILING: Final = 5.0
"""No restart waits longer. Precedent: Kubernetes' crash loop backoff, which doubles up to 300 s."""

MAX_ATTEMPTS: Final = 3
"""Tries of one job that takes its worker down. Precedent: Dask's allowed-failures, 3."""

# -- children --------------------------------------------------------------------------

LEASE: Final = 60.0
"""A discovery record's lease (children contract, A4.2)."""

LEASE_RENEW: Final = 20.0
"""Renewal period: a third of the lease, as in etcd."""

REGISTER_WAIT: Final = 30.0
"""For a child to publish its record (children contract, A4.1)."""

REGISTER_POLL: Final = 0.02
"""Between two looks for the record (children contract, A4.1)."""

APPROVAL_WAIT: Final = 300.0
"""For a decision on a child's approval request; then deny (children contract, A6)."""

MAX_PROVISION: Final = 8 * 2**20
"""The provision document on a child's standard input (children contract, A4.2)."""

# -- pods ------------------------------------------------------------------------------

POD_NOTIFICATIONS: Final = 512
"""Notifications replayed to a new client, oldest dropped (pods contract, B2.4)."""

POD_LAG: Final = 256
"""Events that a client may lag behind before it loses its connection (B2.4)."""

POD_METHODS: Final = 32
"""Methods that wait for the controller (B2.4)."""

POD_MODEL_QUEUE: Final = 128
"""Notifications that wait for the next turn, oldest dropped (B2.5)."""

POD_STEP: Final = 5.0
"""Each socket step of a pod client (B6)."""

SOCKET_WAIT: Final = 10.0
"""For a started process to listen on its socket (B3.3: 10 s; pools C4: 5 s)."""

SOCKET_POLL: Final = 0.05
"""Between two looks for a socket (B3.3, C4)."""

LOCK_WAIT: Final = 10.0
"""For the scope lock (B4.1, later upstream)."""

LOCK_POLL: Final = 0.025
"""Between two tries of the scope lock (B4.1)."""

# -- pools -----------------------------------------------------------------------------

POOL_HANDSHAKE: Final = 10.0
"""For a worker's handshake answer (pools contract, C4)."""

POOL_IDLE: Final = 1800.0
"""A pool worker without a client ends after this long (C3.1)."""

POOL_HISTORY: Final = 10
"""Exchanges told by a status request (C3.3)."""

# -- operators -------------------------------------------------------------------------

PING_EVERY: Final = 30.0
"""Server pings (operators contract, 8.9)."""

PEER_SILENCE: Final = 150.0
"""Total silence after which a peer counts as dead (8.9)."""

# -- workers ---------------------------------------------------------------------------

MAX_TASKS: Final = 1024
"""Tasks of one swarm that are remembered; the finished are forgotten oldest first."""

MAX_SPAWN_DEPTH: Final = 4
"""Tasks below tasks (operators contract, 5.2 and 8.9)."""

WORKER_TOKEN_TTL: Final = 1800.0
"""A worker's token and handle (operators contract, 5.1)."""

KEPT_ATTEMPTS: Final = 16
"""Attempts of one task that are told from those of nobody; so many late workers learn why."""

IDEMPOTENCY_KEYS: Final = 4096
"""Answers of one attempt kept for a repeated request: all of its outputs', and as many others'."""

KEY_LIFE: Final = 1200.0
"""No answer that is younger is forgotten for another's: our own client tries a request six times, and
waits ``PEER_SILENCE`` for each."""

MAX_KEPT: Final = 256 * 2**20
"""What ended tasks hold in memory together: prompts, values, Finals, reports, small outputs. Those that
ended first are forgotten."""

GUESSES_PER_PEER: Final = 30
"""Unknown handles from one address, or for one task, within a minute; then 429, and all take turns."""

GUESSES_PER_SERVER: Final = 120
"""Unknown handles in all within a minute: at 100 live handles a hit takes 248 days on average."""

GUESS_TURN: Final = 0.02
"""Between two handles, good or bad, that are looked at while too many unknown ones come: at 100 live
handles a hit takes 10 days on average, and who waits does so for 0.64 s at most (``WAITING_HANDLES``)."""

WAITING_HANDLES: Final = 32
"""Handles that wait for their turn; then 429. Half of the requests that a server of ``MAX_CONNECTIONS``
answers at a time for those that have shown no credential: others are answered beside them."""

WAITING_HANDLES_PER_PEER: Final = 16
"""Of these, from one address."""

FORGOTTEN_HANDLES: Final = 4096
"""Handles of forgotten attempts that are still told from a guess."""

WORKER_SESSION_LIFE: Final = 86_400.0
"""A session of ``POST /v1/sessions``, as an idle operator's (operators contract, 8.9)."""

MAX_WORKER_SESSIONS: Final = 1024
"""Sessions of ``POST /v1/sessions``, which asks for no credential; the oldest goes for a new one."""

SYSTEM_INLINE: Final = 25 * 2**10
"""A larger system prompt is sent by reference (operators contract, 1.5)."""

MAX_REPORTS: Final = 64
"""Degradation reports of one attempt."""

MAX_REPORT: Final = 16 * 2**10
"""One report, or the statistics of an attempt, as JSON."""

INLINE_OUTPUT: Final = 64 * 2**10
"""An output larger than this is kept on disk."""

INLINE_OUTPUTS: Final = 64 * 2**20
"""Outputs of all tasks kept in memory; what comes then is kept on disk, however small."""

MAX_OUTPUT: Final = 256 * 2**20
"""One output of a worker, streamed to disk."""

MAX_TASK_OUTPUTS: Final = 2**30
"""The outputs of one task together."""

MAX_ALL_OUTPUTS: Final = 4 * 2**30
"""The outputs of all tasks together; beyond, those of ended tasks give way."""

MAX_TASK_RECORDS: Final = 1024
"""Outputs of one task, by number."""

MAX_PARENT_REFS: Final = 64
"""Outputs that one output may say it was made from."""

# -- capability tokens -----------------------------------------------------------------

MAX_TOKEN: Final = 8 * 2**10
"""Characters of one encoded token: half of the head that carries it."""

MAX_CAVEATS: Final = 16
"""Caveats of one token."""

MAX_USE_COUNTERS: Final = 1024
"""Limits on uses that are counted for one minted token and what was made of it."""

MALFORMED_PER_MINUTE: Final = 120
"""Messages of one seat that are no frame, before its socket is closed; the session stays. A client
that is merely newer sends a few; a fuzzer sends thousands."""

MAX_LINEAGE: Final = 32
"""Requests that are made while others are answered, within each other."""

# -- dispatch --------------------------------------------------------------------------

RESULT_GRACE: Final = 5.0
"""For a worker that has its prompt to post its result after the operator's ack (4.7: the ack
ends the attempt, and the original loses what is posted later)."""

MAX_STEP_ATTEMPTS: Final = 100
"""Attempts of one step."""

MAX_RUNNING_STEPS: Final = 256
"""Steps started over HTTP that run at a time; more are refused with 503."""

MAX_WAITING_STEPS: Final = 64
"""Of these, such as hold a connection because their client waits: a quarter of ``MAX_CONNECTIONS``, so
that operators and workers, without whom no step ends, always find one."""

SYNC_CEILING: Final = 300.0
"""For a step started over HTTP whose client waits for it (operators contract, 8.9)."""

ATTACH_GRACE: Final = 1.0
"""For an operator that is logged in to be connected, before a step is refused because nobody is: a
client has its WebSocket a moment before the server has given it its seat."""

RENEWAL_MARGIN: Final = 60.0
"""Of a worker's credentials that have waited: those that have no more left are renewed just before
they are handed out (operators contract, 3.5 and 8.9)."""

MAX_RENEWALS: Final = 32
"""Of one attempt's credentials; each is good for a whole life, so only one that is shorter than
``RENEWAL_MARGIN`` is renewed that often."""
