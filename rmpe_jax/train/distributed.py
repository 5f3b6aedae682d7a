"""Several processes that train together: how they find each other, and what they must agree on.

JAX's runtime does the work. Where a process is missing it ends the others without saying which (jax 0.10), so processes
call the roll first.
"""

import contextlib
import importlib
import json
import operator
import os
import socket
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmpe_jax.errors import RmpeError

# Seconds between two attempts to reach the coordinator, and for one line to come over an open connection.
_RETRY, _PATIENCE = 0.2, 5.0


class JoinError(RmpeError):
    """Processes that did not find each other; the message names those that are missing."""


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, *, timeout: float = 100.0
) -> None:
    """Joins this process to the others of a run; to be called before anything else of JAX.

    Args:
        coordinator: HOST:PORT of process 0, where every process can reach it; [HOST]:PORT with IPv6. Without it JAX
            finds the cluster by itself: SLURM, Open MPI, GKE, TPU pods.
        processes: how many there are.
        process: this one's number, from 0.
        timeout: seconds to wait for the others; one that gives no sign of life for as long later ends the run.

    Raises:
        JoinError: some processes did not come, or were started with other numbers; no cluster was found.
    """
    given: tuple[Any, Any, Any] = (coordinator, processes, process)
    explicit = None not in given
    if not explicit and any(value is not None for value in given):
        raise JoinError("the coordinator, the number of processes and this process's number are given together or not")
    seconds = max(int(timeout), 1)
    try:
        where = given if explicit else _found_by_jax(seconds)
        if None not in where:
            _check_in(*where, timeout=timeout)
        jax.distributed.initialize(*where, initialization_timeout=seconds, heartbeat_timeout_seconds=max(seconds, 10))
    except (ValueError, RuntimeError) as error:
        none = "" if explicit else "JAX found no cluster here; give the coordinator, the processes and the number: "
        raise JoinError(f"{none}{error}") from None


def _found_by_jax(seconds: int) -> tuple[Any, Any, Any]:
    """The coordinator, the number of processes and this one's number, as JAX finds them by itself; else three None.

    Where JAX finds them is no part of its public interface (jax 0.10): a version that has it elsewhere joins without a
    roll.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        finder = importlib.import_module("jax._src.clusters").ClusterEnv
        found = finder.auto_detect_unset_distributed_params(address, None, None, None, None, seconds)
        coordinator, processes, process, _ = found
    except (ImportError, AttributeError, TypeError):
        return None, None, None
    return coordinator, processes, process


def _check_in(coordinator: str, processes: int, process: int, *, timeout: float) -> None:
    if not 0 <= process < processes:
        raise JoinError(f"process {process} of {processes}: the numbers go from 0 to {processes - 1}")
    call_roll(coordinator, processes, process, timeout=timeout)


def call_roll(coordinator: str, processes: int, process: int, *, timeout: float) -> None:
    """Returns when all processes are there, in every one of them; raises JoinError in all that came otherwise."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise JoinError(f"coordinator: expected HOST:PORT, got {coordinator!r}")
    deadline = time.monotonic() + timeout
    if process == 0:
        _lead(int(port), processes, deadline, timeout)
    else:
        _answer((host.strip("[]"), int(port)), processes, process, deadline, timeout)


def _lead(port: int, processes: int, deadline: float, timeout: float) -> None:
    """Process 0: takes everybody's number, then tells all the same: nothing, or what is wrong."""
    here, problem, missing = [], "", set(range(1, processes))
    # As JAX's own service: at every address, of IPv6 too where there is such.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, backlog=processes, dualstack_ipv6=both)
    except OSError as error:
        raise JoinError(f"process 0 cannot listen at port {port}: {error.strerror}") from None
    with server, contextlib.ExitStack() as connections:
        while missing and not problem:
            try:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                connection = connections.enter_context(server.accept()[0])
            except TimeoutError:
                names = ", ".join(map(str, sorted(missing)))
                problem = f"process {names} of {processes} did not join within {timeout:g} seconds"
                break
            connection.settimeout(_PATIENCE)
            try:
                number, count = map(operator.index, json.loads(connection.makefile("r").readline(100)))
            except (OSError, ValueError, TypeError):
                continue  # somebody else knocked
            here.append(connection)
            if count != processes:
                problem = f"process {number} was started for {count} processes, process 0 for {processes}"
            elif number not in missing:
                problem = f"two processes have the number {number}"
            missing.discard(number)
        for connection in here:
            # Whoever has gone meanwhile is missed by JAX.
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(problem).encode() + b"\n")
    if problem:
        raise JoinError(problem)


def _answer(address: tuple[str, int], processes: int, process: int, deadline: float, timeout: float) -> None:
    """Any other process: tells its number, and waits for what process 0 says."""
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection(address, timeout=max(left, 0.01)) as connection:
                connection.sendall(json.dumps([process, processes]).encode() + b"\n")
                # Process 0 may have started later than this one: it answers within its own time.
                connection.settimeout(timeout + _PATIENCE)
                problem = json.loads(connection.makefile("r").readline(1000))
            break
        except (OSError, ValueError):
            if left <= _RETRY:
                host, port = address
                place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                raise JoinError(
                    f"process {process} waited {timeout:g} seconds for process 0 at {place}, which did not answer"
                ) from None
            time.sleep(_RETRY)
    if problem:
        raise JoinError(problem)


def is_main() -> bool:
    """Whether this is the process that writes logs and weights."""
    return jax.process_index() == 0


def of_main(value: float) -> float:
    """Process 0's number in every process: what decides must not differ in its last bit."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value))) if jax.process_count() > 1 else value


def of_all(value: int) -> list[int]:
    """The numbers of all processes, in their order; returns when all have come here."""
    if jax.process_count() == 1:
        return [value]
    values: Any = multihost_utils.process_allgather(np.int32(value))
    return values.tolist()


def check_alike(what: str, value: int) -> None:
    """Raises JoinError where processes hold different numbers; ``what`` says of what."""
    values = of_all(value)
    if len(set(values)) > 1:
        raise JoinError(f"{what} differs between processes: {', '.join(map(str, values))}")


def asked_to_stop(step: int) -> bool:
    """Whether a process was told to end (SIGTERM); true in all of them at the same step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
