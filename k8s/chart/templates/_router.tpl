{{- define "triptych.routerArgs" -}}
- --config=/etc/triptych/config.yaml
- --run-dir=/run/triptych
- --id=router-$(POD_INDEX)
- --port={{ include "triptych.httpPort" . }}
- --registry-listen=0.0.0.0:7100
{{- end -}}

{{- define "triptych.routerPorts" -}}
- name: http
  containerPort: {{ include "triptych.httpPort" . }}
- name: registry
  containerPort: 7100
{{- end -}}

{{/* Ready: a decode worker is attached. Live has no opinion of workers: a restart would not bring any. */}}
{{- define "triptych.routerProbes" -}}
startupProbe:
  httpGet: {path: /live, port: http}
  periodSeconds: 2
  failureThreshold: {{ div (add .probes.startupSeconds 1) 2 }}
readinessProbe:
  httpGet: {path: /ready, port: http}
  periodSeconds: {{ .probes.readinessPeriodSeconds }}
  timeoutSeconds: {{ .probes.timeoutSeconds }}
livenessProbe:
  httpGet: {path: /live, port: http}
  periodSeconds: {{ .probes.livenessPeriodSeconds }}
  timeoutSeconds: {{ .probes.timeoutSeconds }}
  failureThreshold: {{ .probes.livenessFailures }}
{{- end -}}
