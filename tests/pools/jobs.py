"""Jobs for the tests; imported in workers, so it imports little."""

import os
import signal
import time


def echo(ctx, query):
    return ctx


def pid(ctx, query):
    return os.getpid()


def ask(ctx, query):
    return query(ctx)


def ask_then_pid(ctx, query):
    return [query(ctx), os.getpid()]


def die(ctx, query):
    os.kill(os.getpid(), signal.SIGKILL)


def poison(ctx, query):
    """Dies for the context 'poison', doubles any other."""
    if ctx == "poison":
        os._exit(7)
    return ctx * 2


def spin(ctx, query):
    """Does not end by itself."""
    while True:
        pass


def ask_then_spin(ctx, query):
    query("started")
    spin(ctx, query)


def sleep(ctx, query):
    time.sleep(ctx)


def fail(ctx, query):
    error = ValueError(ctx)
    error.add_note("a note")
    raise error


def fail_as(ctx, query):
    """Raises what the name in the context says."""
    if ctx == "group":
        raise ExceptionGroup("two", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    if ctx == "own":
        raise Own("mine")
    if ctx == "unicode":
        b"\xff".decode()
    if ctx == "key":
        raise KeyError("k")
    if ctx == "surrogate":
        raise OSError("caf\udce9")
    if ctx == "exit":
        raise SystemExit(3)
    if ctx == "set":
        return {"a": [1, {2}]}
    if ctx == "nan":
        return float("nan")
    return None


class Own(Exception):
    pass
