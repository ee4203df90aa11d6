"""A small stand-in for Kubernetes, for tests: runs rendered manifests as processes of this machine.

`cluster.py` is the control plane (what `kubectl apply` makes of manifests), `pod.py` and
`container.py` the kubelet, `doors.py` with `services.py` DNS and kube-proxy. Decisions are pure:
`rollout.py`, `probes.py`, `variables.py`.

Real: one network, PID and mount namespace per pod or container; init containers, probes, restarts
with back-off, preStop, SIGTERM and the grace period, rolling upgrades, read-only roots, users and
their capabilities, the downward API, volumes of ConfigMaps, Secrets, both projected, emptyDir and
claims.
Not enforced: limits of CPU and memory, seccomp, network policies, disruption budgets, scheduling
rules, service accounts. Mounted ConfigMaps do not change under a running pod.
"""
