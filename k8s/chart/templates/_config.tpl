{{/*
The config that all processes read: .Values.config as it is, but for the files of `tls`, and for autoscaled pools: the
workers that are always there are their `minReplicas`.
*/}}
{{- define "triptych.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range $config.pools -}}
{{- $scaling := (include "triptych.settings" (list $ .name) | fromYaml).autoscaling -}}
{{- if $scaling.enabled -}}
{{- $_ := set . "replicas" $scaling.minReplicas -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- $folder := "/etc/triptych/tls" -}}
{{- $_ := set $config "tls" (dict "cert" (printf "%s/tls.crt" $folder) "key" (printf "%s/tls.key" $folder) "ca" (printf "%s/ca.crt" $folder) "server_name" .Values.tls.serverName) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* "yes" when API keys stand in the config itself: it is kept in a Secret then. */}}
{{- define "triptych.configIsSecret" -}}
{{- $router := .Values.config.router | default dict -}}
{{- $keys := $router.api_keys | default list -}}
{{- range $router.tenants | default list -}}
{{- $keys = concat $keys (.keys | default list) -}}
{{- end -}}
{{- if $keys -}}yes{{- end -}}
{{- end -}}

{{/*
What a change of rolls the pods of a pool: all of the config but how many workers there are of what.
Whether there are any at all counts. Call with (list $ pool-name).
*/}}
{{- define "triptych.configChecksum" -}}
{{- $root := index . 0 -}}
{{- $own := index . 1 -}}
{{- $config := include "triptych.config" $root | fromYaml -}}
{{- $pools := list -}}
{{- range $config.pools -}}
{{- $some := ne (int (dig "replicas" 1 .)) 0 -}}
{{- if eq .name $own -}}
{{- $pools = append $pools (omit . "replicas") -}}
{{- else -}}
{{- $pools = append $pools (dict "name" .name "role" .role "some" $some) -}}
{{- end -}}
{{- end -}}
{{- $router := omit ($config.router | default dict) "replicas" -}}
{{- merge (dict "pools" $pools "router" $router) (omit $config "pools" "router") | toYaml | sha256sum -}}
{{- end -}}

{{- define "triptych.routerReplicas" -}}
{{- dig "router" "replicas" 1 .Values.config | int -}}
{{- end -}}

{{- define "triptych.httpPort" -}}
{{- dig "router" "port" 8000 .Values.config | int -}}
{{- end -}}

{{/* A size in bytes, as Kubernetes (512Mi) or the config (512MiB) writes it. Call with (list key size). */}}
{{- define "triptych.bytes" -}}
{{- $key := index . 0 -}}
{{- $size := index . 1 -}}
{{- $text := ternary ($size | toString) (printf "%.0f" (float64 $size)) (kindIs "string" $size) | lower | nospace -}}
{{- $number := regexFind "^[0-9]*\\.?[0-9]+" $text -}}
{{- $unit := trimPrefix $number $text | trimSuffix "b" -}}
{{- $units := dict "" 1 "k" 1e3 "m" 1e6 "g" 1e9 "t" 1e12 "p" 1e15 "ki" 1024 "mi" 1048576 "gi" 1073741824 "ti" 1099511627776 "pi" 1125899906842624 -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "%s: %v is no size; expected a number with a unit such as MiB or GiB" $key (index . 1)) -}}
{{- end -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- end -}}

{{/* The KV pool of one worker of a pool, in bytes. Call with (list $ pool). */}}
{{- define "triptych.kvBytes" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{- if $pool.kv -}}
{{- include "triptych.bytes" (list (printf "config.pools: %s: kv.memory" $pool.name) (dig "memory" "1GiB" $pool.kv)) -}}
{{- else -}}
{{- include "triptych.bytes" (list "config.kv.memory" (dig "kv" "memory" "1GiB" $root.Values.config)) -}}
{{- end -}}
{{- end -}}
