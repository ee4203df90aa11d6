"""The control plane: makes pods of manifests, and keeps them as the manifests say.

async with LocalCluster.create(image, state, namespace="llm") as cluster:
    await cluster.apply(manifests)
    await cluster.until_settled(timeout_s=120)
    url = cluster.url_of("rel-triptych", 8000)
    await cluster.apply(other_manifests)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triptych.testing.hosts import Network
from triptych.testing.kubelet.container import Node
from triptych.testing.kubelet.doors import Doors
from triptych.testing.kubelet.pod import Pod
from triptych.testing.kubelet.rollout import (
    PodView,
    Step,
    deployment_step,
    share_of,
    stateful_step,
)
from triptych.testing.kubelet.services import NameServer
from triptych.testing.kubelet.variables import Identity, Manifest, Stored
from triptych.testing.kubelet.volumes import Image

_HASH = "pod-template-hash"
_REVISION = "controller-revision-hash"
_INDEX = "apps.kubernetes.io/pod-index"
_HOOK = "helm.sh/hook"
_OF_HOOK = "hook/"  # in place of a workload's name
_NODES = 3  # how many names of nodes the pods of a workload go round


class NotSettled(Exception):
    """What was asked for is not there in time, or never will be; with events and logs."""


@dataclass(slots=True)
class LocalCluster:
    node: Node
    namespace: str
    doors: Doors
    events: list[str] = field(default_factory=list)
    _manifests: Sequence[Manifest] = ()
    _pods: dict[str, tuple[str, Pod]] = field(default_factory=dict)  # by name: workload, pod
    _broken: Exception | None = None  # why nothing is kept any more
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _settled: asyncio.Condition = field(default_factory=asyncio.Condition)
    _endings: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    @contextlib.asynccontextmanager
    async def create(
        cls, image: Image, state: Path, *, namespace: str, claims: Mapping[str, Path] | None = None
    ) -> AsyncIterator[LocalCluster]:
        """`state`: an empty folder; pods' logs stay there. `claims`: persistent volumes.

        Ends by killing what was not uninstalled.
        """
        async with Network.create() as network, NameServer.serving(network.gateway) as names:
            resolver = state / "resolv.conf"
            doors = Doors(network, names, namespace)
            resolver.write_text(doors.resolver)
            cluster = cls(Node(network, image, state, resolver, claims or {}), namespace, doors)
            keeper = asyncio.create_task(cluster._keep())
            try:
                yield cluster
            finally:
                keeper.cancel()
                await asyncio.wait({keeper})
                await cluster._end(grace_s=0)

    async def apply(self, manifests: Sequence[Manifest]) -> None:
        """`helm install` or `helm upgrade`: from now on the cluster is made to be like this."""
        for manifest in manifests:
            if manifest["kind"] == "Service":
                await self.doors.open(manifest)
        self._manifests = [each for each in manifests if _HOOK not in _annotations(each)]
        self._touch()

    async def uninstall(self) -> None:
        """Deletes everything with its grace period."""
        self._manifests = ()
        await self._end(grace_s=None)

    async def until_settled(self, timeout_s: float) -> None:
        """All pods of the newest templates are ready, and no others are left. Raises NotSettled."""
        async with self._settled:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._settled.wait_for(self._is_settled)
            except TimeoutError:
                raise NotSettled(self.report(f"not ready after {timeout_s:.0f} s")) from None

    async def until(self, condition: Callable[[LocalCluster], bool], timeout_s: float) -> None:
        """Looks whenever a pod appears, gets ready or not, or is gone. Raises TimeoutError."""
        async with self._settled, asyncio.timeout(timeout_s):
            await self._settled.wait_for(lambda: condition(self))

    async def run_hooks(self, manifests: Sequence[Manifest], hook: str = "test") -> list[Pod]:
        """`helm test`: runs the pods of this hook in turn. Raises NotSettled when one fails."""
        done = []
        for manifest in manifests:
            if hook not in _annotations(manifest).get(_HOOK, "").split(","):
                continue
            if manifest["kind"] != "Pod":
                raise NotSettled(f"hook {manifest['kind']}: this stand-in runs Pods")
            # What an earlier run left (before-hook-creation).
            shutil.rmtree(self.node.state / manifest["metadata"]["name"], ignore_errors=True)
            pod = self._make_pod(_OF_HOOK + hook, manifest["metadata"]["name"], manifest, {})
            try:
                code = await pod.finished()
            finally:
                await pod.stop(grace_s=0)
                self._pods.pop(pod.identity.name)
            if code:
                raise NotSettled(f"{pod.identity.name} ended with {code}:\n{pod.log()}")
            done.append(pod)
        return done

    def pods(self, workload: str = "") -> list[Pod]:
        """Those of a workload (its name), or all; stopping ones too."""
        return [pod for owner, pod in self._pods.values() if not workload or owner == workload]

    def url_of(self, service: str, port: int) -> str:
        """Of a Service with an address of its own, from here."""
        return self.doors.url_of(service, port)

    def report(self, why: str) -> str:
        """For people: what happened, and the end of each log."""
        logs = [f"--- {name}\n{pod.log()[-2000:]}" for name, (_, pod) in self._pods.items()]
        return "\n".join([why, *self.events[-60:], *logs])

    def _is_settled(self) -> bool:
        if self._broken is not None:
            raise NotSettled(self.report(f"cannot go on: {self._broken!r}"))
        for _, pod in self._pods.values():
            if pod.failure is not None:
                raise NotSettled(self.report(f"{pod.identity.name}: {pod.failure!r}"))
        others = set(self._pods)
        for workload in self._kind("Deployment", "StatefulSet"):
            pods = self.pods(workload["metadata"]["name"])
            wanted = workload["spec"].get("replicas", 1)
            views = [self._view(pod, workload) for pod in pods]
            good = [each for each in views if each.current and each.ready and not each.stopping]
            if not len(good) == len(views) == wanted:
                return False
            others -= {each.name for each in views}
        return not others

    async def _keep(self) -> None:
        try:
            await self._reconcile()
        except Exception as error:
            self._broken = error
            async with self._settled:
                self._settled.notify_all()

    async def _reconcile(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            owners = set()
            for workload in self._kind("Deployment", "StatefulSet"):
                owners.add(workload["metadata"]["name"])
                self._act(workload, self._step(workload))
            orphans = [
                pod
                for owner, pod in self._pods.values()
                if owner not in owners and not owner.startswith(_OF_HOOK)
            ]
            self._retire(orphans)
            self.doors.update(self._kind("Service"), self.pods())
            async with self._settled:
                self._settled.notify_all()

    def _step(self, workload: Manifest) -> Step:
        spec = workload["spec"]
        replicas = spec.get("replicas", 1)
        views = [self._view(pod, workload) for pod in self.pods(workload["metadata"]["name"])]
        if workload["kind"] == "StatefulSet":
            parallel = spec.get("podManagementPolicy") == "Parallel"
            return stateful_step(replicas, parallel=parallel, pods=views)
        strategy = spec.get("strategy") or {}
        if strategy.get("type") == "Recreate":
            surge, unavailable = 0, replicas
        else:
            rolling = strategy.get("rollingUpdate") or {}
            surge = share_of(rolling.get("maxSurge", "25%"), replicas, up=True)
            unavailable = share_of(rolling.get("maxUnavailable", "25%"), replicas, up=False)
        return deployment_step(replicas, surge, unavailable, views)

    def _view(self, pod: Pod, workload: Manifest) -> PodView:
        labels = pod.identity.labels
        mark = labels.get(_HASH) or labels.get(_REVISION)
        current = mark == hash_of(workload["spec"]["template"])
        ordinal = int(labels.get(_INDEX, 0))
        return PodView(pod.identity.name, current, pod.ready, pod.stopping, ordinal)

    def _act(self, workload: Manifest, step: Step) -> None:
        name, template = workload["metadata"]["name"], workload["spec"]["template"]
        revision = hash_of(template)
        for _ in range(step.create):
            suffix = f"{revision}-{secrets.token_hex(3)[:5]}"
            self._make_pod(name, f"{name}-{suffix}", template, {_HASH: revision})
        for ordinal in step.ordinals:
            labels = {
                _REVISION: revision,
                _INDEX: str(ordinal),
                "statefulset.kubernetes.io/pod-name": f"{name}-{ordinal}",
            }
            self._make_pod(name, f"{name}-{ordinal}", template, labels)
        self._retire([self._pods[each][1] for each in step.delete])

    def _make_pod(
        self, workload: str, name: str, template: Manifest, labels: Mapping[str, str]
    ) -> Pod:
        metadata = template.get("metadata") or {}
        identity = Identity(
            name,
            self.namespace,
            node=f"node-{len(self.pods(workload)) % _NODES}",
            labels={**(metadata.get("labels") or {}), **labels},
            annotations=metadata.get("annotations") or {},
        )
        stored = Stored.of(self._manifests)
        pod = Pod(identity, template["spec"], stored, self.node, self._touch, self.events)
        self._pods[name] = (workload, pod)
        pod.start()
        return pod

    def _retire(self, pods: Sequence[Pod], grace_s: float | None = None) -> None:
        for pod in pods:
            if not pod.stopping:
                task = asyncio.create_task(self._end_pod(pod, grace_s))
                self._endings.add(task)
                task.add_done_callback(self._endings.discard)

    async def _end_pod(self, pod: Pod, grace_s: float | None) -> None:
        await pod.stop(grace_s)
        self._pods.pop(pod.identity.name, None)
        self._touch()

    async def delete_pod(self, pod: Pod, grace_s: float | None = None) -> None:
        """`kubectl delete pod`; its workload makes another one. 0: by force, at once."""
        await self._end_pod(pod, grace_s)

    def _touch(self) -> None:
        self._changed.set()

    async def _end(self, grace_s: float | None) -> None:
        self._retire(self.pods(), grace_s)
        if grace_s == 0:
            await asyncio.gather(*(pod.stop(grace_s=0) for pod in self.pods()))
        await asyncio.gather(*self._endings)
        await self.doors.close()

    def _kind(self, *kinds: str) -> list[Manifest]:
        return [each for each in self._manifests if each["kind"] in kinds]


def hash_of(template: Manifest) -> str:
    """Tells revisions of a pod template apart."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _annotations(manifest: Manifest) -> Mapping[str, str]:
    return manifest["metadata"].get("annotations") or {}
