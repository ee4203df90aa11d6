{{/*
What pools grow by. Prompts wait at the router (its queue), answers take KV blocks, FFN workers take time.
The ratios are recorded by the rules of monitoring.rules; an adapter for custom metrics gives them to an HPA.
*/}}
{{- define "triptych.scalingTarget" -}}
{{- $pool := index . 0 -}}
{{- (index . 1).target | default (get (dict "prefill" 4096 "decode" 0.7 "ffn" 0.6) $pool.role) -}}
{{- end -}}

{{- define "triptych.hpaMetric" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{- $target := include "triptych.scalingTarget" (list $pool (index . 2)) | float64 -}}
{{- $amount := printf "%dm" (addf (mulf $target 1000) 0.5 | int64) -}}
{{- if eq $pool.role "prefill" -}}
- type: Object
  object:
    describedObject: {apiVersion: v1, kind: Service, name: {{ include "triptych.fullname" $root }}}
    metric: {name: triptych_queued_tokens}
    target: {type: AverageValue, averageValue: {{ $amount }}}
{{- else -}}
- type: Pods
  pods:
    metric: {name: {{ ternary "triptych_kv_used_ratio" "triptych_ffn_busy_ratio" (eq $pool.role "decode") }}}
    target: {type: AverageValue, averageValue: {{ $amount }}}
{{- end -}}
{{- end -}}

{{/* The sum over workers; KEDA divides by their number. */}}
{{- define "triptych.kedaTrigger" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{- $select := printf "namespace=%q,app_kubernetes_io_instance=%q,triptych_pool=%q" $root.Release.Namespace $root.Release.Name $pool.name -}}
{{- $queries := dict
  "prefill" (printf "sum(triptych_queued_tokens{namespace=%q,service=%q})" $root.Release.Namespace (include "triptych.fullname" $root))
  "decode" (printf "sum(%s)" (include "triptych.kvUsed" $select))
  "ffn" (printf "sum(%s)" (include "triptych.ffnBusy" $select)) -}}
- type: prometheus
  metricType: AverageValue
  metadata:
    serverAddress: {{ required "monitoring.prometheusUrl: KEDA asks Prometheus there" $root.Values.monitoring.prometheusUrl }}
    query: {{ get $queries $pool.role | squote }}
    threshold: {{ include "triptych.scalingTarget" (list $pool (index . 2)) | quote }}
{{- end -}}

{{/* PromQL by pod; call with a label selector. A block that two requests share is held twice, so it counts for both. */}}
{{- define "triptych.kvUsed" -}}
sum by (namespace, pod) (triptych_kv_blocks{owner="request",state="held",{{ . }}}) / sum by (namespace, pod) (triptych_kv_blocks{state=~"free|cached|held",{{ . }}})
{{- end -}}

{{- define "triptych.ffnBusy" -}}
sum by (namespace, pod) (rate(triptych_ffn_batch_seconds_sum{ {{- . -}} }[1m]))
{{- end -}}

{{- define "triptych.workload" -}}
{{- ternary "Deployment" "StatefulSet" (has .role (list "prefill" "decode")) -}}
{{- end -}}
