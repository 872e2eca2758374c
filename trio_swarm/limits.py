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
"""Connections of one server at a time; more are hung up on at once."""

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
