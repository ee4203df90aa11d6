{{/* Call with (list $ pool settings). */}}
{{- define "triptych.workerArgs" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{- $settings := index . 2 -}}
- --config=/etc/triptych/config.yaml
- --run-dir=/run/triptych
- --pool={{ $pool.name }}
- --id={{ ternary "$(POD_NAME)" (printf "%s-$(POD_INDEX)" $pool.name) (has $pool.role (list "prefill" "decode")) }}
- --domain=$(NODE_NAME)
- --host=$(POD_IP)
- --port={{ $settings.ports.grpc }}
- --metrics-port={{ $settings.ports.metrics }}
{{- with $settings.rdma.interface }}
- --kv-host={{ . }}
{{- end }}
{{- range $index := until (include "triptych.routerReplicas" $root | int) }}
- --registry={{ include "triptych.podHost" (list $root "router" $index) }}:7100
{{- end }}
{{- if eq $pool.role "decode" }}
{{- range $peer := $root.Values.config.pools }}
{{- if eq $peer.role "draft" }}
{{- $peerSettings := include "triptych.settings" (list $root $peer.name) | fromYaml }}
{{- range $index := until (dig "replicas" 1 $peer | int) }}
- --peer={{ $peer.name }}={{ include "triptych.podHost" (list $root $peer.name $index) }}:{{ $peerSettings.ports.grpc }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "triptych.workerPorts" -}}
- name: grpc
  containerPort: {{ .ports.grpc }}
- name: metrics
  containerPort: {{ .ports.metrics }}
{{- end -}}

{{/*
Nothing listens until the model is loaded, so the startup probe has the patience. Live: the event loop runs and no
step lasts for ever; peers, load and drains have no say, so a busy pod is not killed. Ready: attached to a router.
*/}}
{{- define "triptych.workerProbes" -}}
startupProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 2
  failureThreshold: {{ div (add .probes.startupSeconds 1) 2 }}
readinessProbe:
  httpGet: {path: /ready, port: metrics}
  periodSeconds: {{ .probes.readinessPeriodSeconds }}
  timeoutSeconds: {{ .probes.timeoutSeconds }}
livenessProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: {{ .probes.livenessPeriodSeconds }}
  timeoutSeconds: {{ .probes.timeoutSeconds }}
  failureThreshold: {{ .probes.livenessFailures }}
{{- end -}}
