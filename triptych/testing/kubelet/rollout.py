"""What a Deployment or a StatefulSet does next, by the pods that there are. Pure.

After kube-controller-manager's deployment/rolling.go and statefulset/stateful_set_control.go, for
the strategies that our charts use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PodView:
    name: str
    current: bool  # made from the newest template
    ready: bool
    stopping: bool = False
    ordinal: int = 0  # of a StatefulSet's


@dataclass(frozen=True, slots=True)
class Step:
    """Nothing: wait for a pod to change."""

    create: int = 0  # how many more pods of a Deployment
    ordinals: tuple[int, ...] = ()  # which pods of a StatefulSet to create
    delete: tuple[str, ...] = ()


def share_of(amount: int | str, replicas: int, *, up: bool) -> int:
    """maxSurge (rounds up) or maxUnavailable (rounds down): a number or "25%"."""
    if isinstance(amount, int):
        return amount
    exact = replicas * float(amount.removesuffix("%")) / 100
    return math.ceil(exact) if up else math.floor(exact)


def deployment_step(
    replicas: int, max_surge: int, max_unavailable: int, pods: Sequence[PodView]
) -> Step:
    """Pods that stop already count for nothing, as in Kubernetes."""
    if max_surge == 0 and max_unavailable == 0:
        max_unavailable = 1  # as Kubernetes: else nothing could ever move
    alive = [pod for pod in pods if not pod.stopping]
    new = [pod for pod in alive if pod.current]
    old = [pod for pod in alive if not pod.current]
    create = max(0, min(replicas - len(new), replicas + max_surge - len(alive)))
    surplus = sorted(new, key=lambda pod: pod.ready)[: max(0, len(new) - replicas)]
    ready = sum(pod.ready for pod in alive if pod not in surplus)
    spare = max(0, ready - (replicas - max_unavailable))
    lame = [pod for pod in old if not pod.ready]
    # Old pods that are not ready serve nobody and go at once; ready ones as others replace them.
    retired = lame + [pod for pod in old if pod.ready][:spare]
    return Step(create=create, delete=tuple(pod.name for pod in (*surplus, *retired)))


def stateful_step(replicas: int, *, parallel: bool, pods: Sequence[PodView]) -> Step:
    """One pod per ordinal; a newer template replaces them one by one, the last one first."""
    there = {pod.ordinal: pod for pod in pods}
    excess = sorted((each for each in there if each >= replicas), reverse=True)
    doomed = [there[each] for each in excess if not there[each].stopping]
    if not parallel:
        doomed = [] if any(there[each].stopping for each in excess) else doomed[:1]
    missing = [each for each in range(replicas) if each not in there]
    if missing and not parallel:
        # In order: only behind pods that are ready.
        before = [there[each] for each in range(missing[0])]
        missing = missing[:1] if all(pod.ready and not pod.stopping for pod in before) else []
    if not doomed and not missing and not excess:
        doomed = _outdated(there, replicas)
    return Step(ordinals=tuple(missing), delete=tuple(pod.name for pod in doomed))


def _outdated(there: dict[int, PodView], replicas: int) -> list[PodView]:
    for ordinal in reversed(range(replicas)):
        pod = there.get(ordinal)
        if pod is None or pod.stopping:
            return []
        if not pod.current:
            return [pod]
        if not pod.ready:
            return []
    return []
