"""Operators: those who are asked, who gate, who observe and who execute (operators contract).

An operator is an object of this process (`LocalSeat`), or a program that logs in over HTTP
and takes its seat over a WebSocket (`Swarm.serve_operators`, `Seat`). `connect_operator` is the
other end of that.
"""

from __future__ import annotations

from trio_swarm._io.http_limits import FrontLimits
from trio_swarm.frames.operator import Ask, HookAfter, HookBefore, Spawn, Worker
from trio_swarm.operators.approvals import Approval, ApprovalPolicy, approve
from trio_swarm.operators.base import AnySeat, WorkerResult
from trio_swarm.operators.client import OperatorClient
from trio_swarm.operators.connecting import connect_operator
from trio_swarm.operators.joining import OperatorSession
from trio_swarm.operators.lineage import Withdrawal, withdrawing
from trio_swarm.operators.local import LocalSeat
from trio_swarm.operators.login import RolesTaken
from trio_swarm.operators.reconnect import Reconnect
from trio_swarm.operators.requests import (
    AskRequest,
    GateRequest,
    OperatorItem,
    OperatorRequest,
    ReplyRefused,
    Settled,
    SpawnRequest,
    Withdrawn,
)
from trio_swarm.operators.seat import OperatorStatistics, Seat
from trio_swarm.operators.server import OperatorServer, ServerStatistics
from trio_swarm.operators.server import serve_operators as serve_operators

__all__ = [
    "AnySeat",
    "Approval",
    "ApprovalPolicy",
    "Ask",
    "AskRequest",
    "FrontLimits",
    "GateRequest",
    "HookAfter",
    "HookBefore",
    "LocalSeat",
    "OperatorClient",
    "OperatorItem",
    "OperatorRequest",
    "OperatorServer",
    "OperatorSession",
    "OperatorStatistics",
    "Reconnect",
    "ReplyRefused",
    "RolesTaken",
    "Seat",
    "ServerStatistics",
    "Settled",
    "Spawn",
    "SpawnRequest",
    "Withdrawal",
    "Withdrawn",
    "Worker",
    "WorkerResult",
    "approve",
    "connect_operator",
    "withdrawing",
]
