{{/* Names and labels. A pool's objects are called <release>-<pool>. */}}

{{- define "triptych.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Call with (list $ pool-name). */}}
{{- define "triptych.poolName" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s" (include "triptych.fullname" $root) (index . 1) -}}
{{- end -}}

{{/* What a process of a StatefulSet is called in the cluster's DNS. Call with (list $ pool-name index). */}}
{{- define "triptych.podHost" -}}
{{- $root := index . 0 -}}
{{- $name := include "triptych.poolName" (list $root (index . 1)) -}}
{{- printf "%s-%d.%s.%s.svc.%s" $name (int (index . 2)) $name $root.Release.Namespace $root.Values.clusterDomain -}}
{{- end -}}

{{/* What all pods of the release have, and selectors ask for. */}}
{{- define "triptych.releaseLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What pods of one pool have. Call with (list $ pool-name). */}}
{{- define "triptych.poolLabels" -}}
{{ include "triptych.releaseLabels" (index . 0) }}
triptych/pool: {{ index . 1 }}
{{- end -}}

{{- define "triptych.labels" -}}
{{ include "triptych.releaseLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: triptych
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What an object that belongs to a pool has itself. Call with (list $ pool). */}}
{{- define "triptych.objectLabels" -}}
{{- $pool := index . 1 -}}
{{ include "triptych.labels" (index . 0) }}
app.kubernetes.io/component: {{ $pool.role }}
triptych/pool: {{ $pool.name }}
{{- end -}}
