{{/* podDefaults with pods.<name> over them. Call with (list $ pool-name). */}}
{{- define "triptych.settings" -}}
{{- $root := index . 0 -}}
{{- $settings := deepCopy $root.Values.podDefaults -}}
{{- include "triptych.overlay" (list $settings (get $root.Values.pods (index . 1) | default dict)) -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* Puts one dict over another, in place; null unsets. mergeOverwrite would not let false, 0 or "" win. */}}
{{- define "triptych.overlay" -}}
{{- $under := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $under $key -}}
{{- else if and (kindIs "map" $value) (kindIs "map" (get $under $key)) -}}
{{- include "triptych.overlay" (list (get $under $key) $value) -}}
{{- else -}}
{{- $_ := set $under $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Call with (list $ settings). */}}
{{- define "triptych.image" -}}
{{- $root := index . 0 -}}
{{- $image := deepCopy $root.Values.image -}}
{{- include "triptych.overlay" (list $image (index . 1).image) -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (ne $image.registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s%s" $name ($image.tag | default $root.Chart.AppVersion) $image.variant -}}
{{- end -}}
{{- end -}}

{{/* Longer than everything that a stopping pod does. Call with (list $ settings). */}}
{{- define "triptych.graceSeconds" -}}
{{- $drain := dig "drain_s" 30 (index . 0).Values.config | float64 | ceil | int -}}
{{- add $drain (index . 1).preStopSeconds 15 -}}
{{- end -}}

{{/* What no schema can say. Included by the ConfigMap, so each rendering checks it. */}}
{{- define "triptych.validate" -}}
{{- $names := list "router" -}}
{{- $decoders := 0 -}}
{{- range .Values.config.pools -}}
{{- if has .name $names -}}
{{- fail (printf "config.pools: two pools share the name %q ('router' is the routers')" .name) -}}
{{- end -}}
{{- if gt (len (include "triptych.poolName" (list $ .name))) 52 -}}
{{- fail (printf "config.pools: %s: with the release's name before it, the name has more than 52 characters; shorten one of them" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if eq .role "decode" -}}
{{- $decoders = add $decoders (dig "replicas" 1 .) -}}
{{- end -}}
{{- end -}}
{{- if not $decoders -}}
{{- fail "config.pools: a cluster needs at least one decode worker" -}}
{{- end -}}
{{- range $name := keys .Values.pods | sortAlpha -}}
{{- if not (has $name $names) -}}
{{- fail (printf "pods.%s: config.pools has no pool of this name; there are %s" $name (join ", " $names)) -}}
{{- end -}}
{{- end -}}
{{- if (include "triptych.settings" (list . "router") | fromYaml).autoscaling.enabled -}}
{{- fail "pods.router.autoscaling: workers are told of each router by name; set config.router.replicas" -}}
{{- end -}}
{{- include "triptych.validateNetwork" . -}}
{{- include "triptych.validateDrafters" . -}}
{{- include "triptych.validateModel" . -}}
{{- range .Values.config.pools -}}
{{- include "triptych.validatePool" (list $ .) -}}
{{- end -}}
{{- end -}}

{{- define "triptych.validateNetwork" -}}
{{- $host := dig "router" "host" "127.0.0.1" .Values.config -}}
{{- if has $host (list "127.0.0.1" "localhost" "::1") -}}
{{- fail (printf "config.router.host: %s can be reached from inside the router's pod only; say 0.0.0.0 (or ::)" $host) -}}
{{- end -}}
{{- if eq (dig "router" "port" 8000 .Values.config | int) 0 -}}
{{- fail "config.router.port: 0 is any free port; Services need a fixed one, e.g. 8000" -}}
{{- end -}}
{{- $require := dig "transport" "require" "" .Values.config | default "" -}}
{{- if eq $require "shm" -}}
{{- fail "config.transport.require: pods share no memory; require tcp or nixl, or nothing" -}}
{{- end -}}
{{- if and $require (not (has (first (splitList ":" $require)) (dig "transport" "links" list .Values.config))) -}}
{{- fail (printf "config.transport.require: %s is not among config.transport.links" $require) -}}
{{- end -}}
{{- if .Values.config.tls -}}
{{- fail "config.tls: set tls.enabled instead; the chart mounts the files and fills this in" -}}
{{- end -}}
{{- end -}}

{{- define "triptych.validateDrafters" -}}
{{- $drafting := list -}}
{{- range .Values.config.pools -}}
{{- if and (eq .role "draft") (dig "replicas" 1 .) -}}
{{- $drafting = append $drafting .name -}}
{{- end -}}
{{- end -}}
{{- range dig "speculation" "drafters" list .Values.config -}}
{{- if and .pool (not (has .pool $drafting)) -}}
{{- fail (printf "config.speculation.drafters: no workers in a pool %q of role draft; there are %v" .pool $drafting) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "triptych.validateModel" -}}
{{- $model := .Values.model -}}
{{- $under := printf "%s/" ($model.mountPath | trimSuffix "/") -}}
{{- if or $model.volume $model.fetch.source -}}
{{- if not (hasPrefix $under (printf "%s/" .Values.config.model)) -}}
{{- fail (printf "config.model: %v does not lie under model.mountPath, %s, where the model's volume is" .Values.config.model $model.mountPath) -}}
{{- end -}}
{{- if and $model.fetch.source (not (hasPrefix $under (printf "%s/" (include "triptych.fetchTarget" .)))) -}}
{{- fail (printf "model.fetch.to: %s does not lie under model.mountPath, %s" $model.fetch.to $model.mountPath) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Call with (list $ pool). */}}
{{- define "triptych.validatePool" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{- $settings := include "triptych.settings" (list $root $pool.name) | fromYaml -}}
{{- $limit := dig "limits" "memory" "" ($settings.resources | default dict) -}}
{{- if and $limit (has $pool.role (list "prefill" "decode")) -}}
{{- $kv := include "triptych.kvBytes" (list $root $pool) | int64 -}}
{{- if le (include "triptych.bytes" (list (printf "pods.%s.resources.limits.memory" $pool.name) $limit) | int64) $kv -}}
{{- fail (printf "pods.%s.resources.limits.memory: %v leaves nothing beside the KV pool of %d bytes (kv.memory), which is reserved at the start" $pool.name $limit $kv) -}}
{{- end -}}
{{- end -}}
{{- if and $settings.hostNetwork (has (include "triptych.httpPort" $root | int) (list (int $settings.ports.grpc) (int $settings.ports.metrics))) -}}
{{- fail (printf "pods.%s.ports: %d is config.router.port, which may be on the same host" $pool.name (include "triptych.httpPort" $root | int)) -}}
{{- end -}}
{{- if and $settings.autoscaling.enabled (gt (int $settings.autoscaling.minReplicas) (int $settings.autoscaling.maxReplicas)) -}}
{{- fail (printf "pods.%s.autoscaling.maxReplicas: %d is less than minReplicas, %d" $pool.name (int $settings.autoscaling.maxReplicas) (int $settings.autoscaling.minReplicas)) -}}
{{- end -}}
{{- if and $settings.autoscaling.enabled (eq $pool.role "draft") -}}
{{- fail (printf "pods.%s.autoscaling: decode workers are told of each draft worker by name; set the pool's replicas" $pool.name) -}}
{{- end -}}
{{- end -}}
