"""A structured-concurrency runtime for agent swarms on Trio.

Public names are loaded when they are first used, so that a child process which needs
only one light module of the package does not pay for Trio and all the rooms. The list below
for the type checker and the table for the interpreter are held together by a test.

A few names are those of one room here and of another there: ``connect_worker`` and ``Outcome`` are
those of `trio_swarm.pools`, ``Approval`` is that of `trio_swarm.children`. A sub-agent that does an
operator's step uses `trio_swarm.workers.connect_worker`; how a `Task` ended is a
`trio_swarm.workers.Outcome`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_swarm._io.process import Exit as Exit
    from trio_swarm._io.process import ManagedProcess as ManagedProcess
    from trio_swarm._io.process import ProcessReport as ProcessReport
    from trio_swarm._io.process import python_argv as python_argv
    from trio_swarm.children import ActorRun as ActorRun
    from trio_swarm.children import Approval as Approval
    from trio_swarm.children import Child as Child
    from trio_swarm.children import ChildRun as ChildRun
    from trio_swarm.errors import ApprovalDenied as ApprovalDenied
    from trio_swarm.errors import ApprovalExpired as ApprovalExpired
    from trio_swarm.errors import AskCycle as AskCycle
    from trio_swarm.errors import BadTokenError as BadTokenError
    from trio_swarm.errors import BusyError as BusyError
    from trio_swarm.errors import ChildCrashed as ChildCrashed
    from trio_swarm.errors import FrameError as FrameError
    from trio_swarm.errors import GrantError as GrantError
    from trio_swarm.errors import HandshakeError as HandshakeError
    from trio_swarm.errors import PeerError as PeerError
    from trio_swarm.errors import PeerGoneError as PeerGoneError
    from trio_swarm.errors import ProtocolError as ProtocolError
    from trio_swarm.errors import Refused as Refused
    from trio_swarm.errors import RemoteError as RemoteError
    from trio_swarm.errors import RestartIntensityExceeded as RestartIntensityExceeded
    from trio_swarm.errors import SlowPeerError as SlowPeerError
    from trio_swarm.errors import SpawnError as SpawnError
    from trio_swarm.errors import StepCancelled as StepCancelled
    from trio_swarm.errors import StepFailed as StepFailed
    from trio_swarm.errors import StoreError as StoreError
    from trio_swarm.errors import SwarmError as SwarmError
    from trio_swarm.errors import Terminated as Terminated
    from trio_swarm.errors import Unreaped as Unreaped
    from trio_swarm.errors import WrongReplyError as WrongReplyError
    from trio_swarm.frames.pod import ScopeRule as ScopeRule
    from trio_swarm.operators import AnySeat as AnySeat
    from trio_swarm.operators import ApprovalPolicy as ApprovalPolicy
    from trio_swarm.operators import Ask as Ask
    from trio_swarm.operators import AskRequest as AskRequest
    from trio_swarm.operators import FrontLimits as FrontLimits
    from trio_swarm.operators import GateRequest as GateRequest
    from trio_swarm.operators import HookAfter as HookAfter
    from trio_swarm.operators import HookBefore as HookBefore
    from trio_swarm.operators import LocalSeat as LocalSeat
    from trio_swarm.operators import OperatorClient as OperatorClient
    from trio_swarm.operators import OperatorItem as OperatorItem
    from trio_swarm.operators import OperatorRequest as OperatorRequest
    from trio_swarm.operators import OperatorServer as OperatorServer
    from trio_swarm.operators import OperatorSession as OperatorSession
    from trio_swarm.operators import Reconnect as Reconnect
    from trio_swarm.operators import ReplyRefused as ReplyRefused
    from trio_swarm.operators import RolesTaken as RolesTaken
    from trio_swarm.operators import Seat as Seat
    from trio_swarm.operators import Settled as Settled
    from trio_swarm.operators import Spawn as Spawn
    from trio_swarm.operators import SpawnRequest as SpawnRequest
    from trio_swarm.operators import Withdrawn as Withdrawn
    from trio_swarm.operators import Worker as Worker
    from trio_swarm.operators import WorkerResult as WorkerResult
    from trio_swarm.operators import approve as approve
    from trio_swarm.operators import connect_operator as connect_operator
    from trio_swarm.pods import Pod as Pod
    from trio_swarm.pods import PodTurn as PodTurn
    from trio_swarm.pods import TurnResult as TurnResult
    from trio_swarm.pools import JobQuery as JobQuery
    from trio_swarm.pools import Outcome as Outcome
    from trio_swarm.pools import Pool as Pool
    from trio_swarm.pools import WorkerInfo as WorkerInfo
    from trio_swarm.pools import connect_worker as connect_worker
    from trio_swarm.swarm import DirectiveContext as DirectiveContext
    from trio_swarm.swarm import Event as Event
    from trio_swarm.swarm import OperatorBinding as OperatorBinding
    from trio_swarm.swarm import RetryPolicy as RetryPolicy
    from trio_swarm.swarm import Step as Step
    from trio_swarm.swarm import Subscription as Subscription
    from trio_swarm.swarm import Swarm as Swarm
    from trio_swarm.swarm import SwarmReport as SwarmReport
    from trio_swarm.swarm import open_swarm as open_swarm
    from trio_swarm.workers import AttemptOver as AttemptOver
    from trio_swarm.workers import CapabilityToken as CapabilityToken
    from trio_swarm.workers import RequestRefused as RequestRefused
    from trio_swarm.workers import Task as Task
    from trio_swarm.workers import TaskBoard as TaskBoard
    from trio_swarm.workers import WorkerBrief as WorkerBrief
    from trio_swarm.workers import WorkerSession as WorkerSession
    from trio_swarm.workers import attenuate as attenuate

_WHERE = {
    "ActorRun": "trio_swarm.children",
    "AnySeat": "trio_swarm.operators",
    "Approval": "trio_swarm.children",
    "ApprovalDenied": "trio_swarm.errors",
    "ApprovalExpired": "trio_swarm.errors",
    "ApprovalPolicy": "trio_swarm.operators",
    "Ask": "trio_swarm.operators",
    "AskCycle": "trio_swarm.errors",
    "AskRequest": "trio_swarm.operators",
    "AttemptOver": "trio_swarm.workers",
    "BadTokenError": "trio_swarm.errors",
    "BusyError": "trio_swarm.errors",
    "CapabilityToken": "trio_swarm.workers",
    "Child": "trio_swarm.children",
    "ChildCrashed": "trio_swarm.errors",
    "ChildRun": "trio_swarm.children",
    "DirectiveContext": "trio_swarm.swarm",
    "Event": "trio_swarm.swarm",
    "Exit": "trio_swarm._io.process",
    "FrameError": "trio_swarm.errors",
    "FrontLimits": "trio_swarm.operators",
    "GateRequest": "trio_swarm.operators",
    "GrantError": "trio_swarm.errors",
    "HandshakeError": "trio_swarm.errors",
    "HookAfter": "trio_swarm.operators",
    "HookBefore": "trio_swarm.operators",
    "JobQuery": "trio_swarm.pools",
    "LocalSeat": "trio_swarm.operators",
    "ManagedProcess": "trio_swarm._io.process",
    "OperatorBinding": "trio_swarm.swarm",
    "OperatorClient": "trio_swarm.operators",
    "OperatorItem": "trio_swarm.operators",
    "OperatorRequest": "trio_swarm.operators",
    "OperatorServer": "trio_swarm.operators",
    "OperatorSession": "trio_swarm.operators",
    "Outcome": "trio_swarm.pools",
    "PeerError": "trio_swarm.errors",
    "PeerGoneError": "trio_swarm.errors",
    "Pod": "trio_swarm.pods",
    "PodTurn": "trio_swarm.pods",
    "Pool": "trio_swarm.pools",
    "ProcessReport": "trio_swarm._io.process",
    "ProtocolError": "trio_swarm.errors",
    "Reconnect": "trio_swarm.operators",
    "Refused": "trio_swarm.errors",
    "RemoteError": "trio_swarm.errors",
    "ReplyRefused": "trio_swarm.operators",
    "RequestRefused": "trio_swarm.workers",
    "RestartIntensityExceeded": "trio_swarm.errors",
    "RetryPolicy": "trio_swarm.swarm",
    "RolesTaken": "trio_swarm.operators",
    "ScopeRule": "trio_swarm.frames.pod",
    "Seat": "trio_swarm.operators",
    "Settled": "trio_swarm.operators",
    "SlowPeerError": "trio_swarm.errors",
    "Spawn": "trio_swarm.operators",
    "SpawnError": "trio_swarm.errors",
    "SpawnRequest": "trio_swarm.operators",
    "Step": "trio_swarm.swarm",
    "StepCancelled": "trio_swarm.errors",
    "StepFailed": "trio_swarm.errors",
    "StoreError": "trio_swarm.errors",
    "Subscription": "trio_swarm.swarm",
    "Swarm": "trio_swarm.swarm",
    "SwarmError": "trio_swarm.errors",
    "SwarmReport": "trio_swarm.swarm",
    "Task": "trio_swarm.workers",
    "TaskBoard": "trio_swarm.workers",
    "Terminated": "trio_swarm.errors",
    "TurnResult": "trio_swarm.pods",
    "Unreaped": "trio_swarm.errors",
    "Withdrawn": "trio_swarm.operators",
    "Worker": "trio_swarm.operators",
    "WorkerBrief": "trio_swarm.workers",
    "WorkerInfo": "trio_swarm.pools",
    "WorkerResult": "trio_swarm.operators",
    "WorkerSession": "trio_swarm.workers",
    "WrongReplyError": "trio_swarm.errors",
    "approve": "trio_swarm.operators",
    "attenuate": "trio_swarm.workers",
    "connect_operator": "trio_swarm.operators",
    "connect_worker": "trio_swarm.pools",
    "open_swarm": "trio_swarm.swarm",
    "python_argv": "trio_swarm._io.process",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
