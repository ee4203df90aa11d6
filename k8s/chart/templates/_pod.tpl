{{/*
The pod of a router or a worker. Call with a dict: root, pool (name), role, settings; container (name) and module (what
python runs) with args, ports and probes as YAML; threads ("": as many as cores), numbered (whether its pods have an
index), shm (size), hash (label that tells revisions of a Deployment apart, or "").
*/}}
{{- define "triptych.pod" -}}
{{- $root := .root -}}
{{- $settings := .settings -}}
metadata:
  labels:
    {{- include "triptych.poolLabels" (list $root .pool) | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
    {{- with $settings.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "triptych.configChecksum" (list $root .pool) }}
    {{- with $settings.networks }}
    k8s.v1.cni.cncf.io/networks: {{ . | quote }}
    {{- end }}
    {{- with $settings.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "triptych.serviceAccount" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "triptych.graceSeconds" (list $root $settings) }}
  securityContext:
    {{- toYaml $settings.podSecurityContext | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $settings.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- with $settings.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $settings.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "triptych.affinity" . }}
  affinity:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with include "triptych.spread" . }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with $settings.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $settings.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $settings.schedulerName }}
  schedulerName: {{ . }}
  {{- end }}
  {{- if $root.Values.model.fetch.source }}
  initContainers:
    {{- include "triptych.fetch" . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .container }}
      image: {{ include "triptych.image" (list $root $settings) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python, -m, {{ .module }}]
      args:
        {{- .args | nindent 8 }}
        {{- with $settings.args }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        {{- include "triptych.env" . | nindent 8 }}
      {{- with $settings.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        {{- .ports | nindent 8 }}
      {{- .probes | nindent 6 }}
      {{- if $settings.preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $settings.preStopSeconds }}
      {{- end }}
      resources:
        {{- include "triptych.resources" . | nindent 8 }}
      securityContext:
        {{- include "triptych.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "triptych.mounts" . | nindent 8 }}
  volumes:
    {{- include "triptych.volumes" . | nindent 4 }}
{{- end -}}

{{- define "triptych.serviceAccount" -}}
{{- default (include "triptych.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "triptych.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if .numbered }}
- name: POD_INDEX
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
{{- end }}
- name: HOME
  value: /tmp
{{- with .threads }}
- name: OMP_NUM_THREADS
  value: {{ . | quote }}
{{- end }}
{{- if not (dig "limits" "cpu" "" (.settings.resources | default dict)) }}
# Others may want the cores that threads would spin on.
- name: OMP_WAIT_POLICY
  value: PASSIVE
{{- end }}
- name: PYTHONUNBUFFERED
  value: "1"
- name: PYTHONSAFEPATH
  value: "1"
{{- with .settings.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "triptych.resources" -}}
{{- $resources := deepCopy (.settings.resources | default dict) -}}
{{- with .settings.rdma.resource -}}
{{- $count := toString $.settings.rdma.count -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set $resources $kind (mustMergeOverwrite (get $resources $kind | default dict) (dict $.settings.rdma.resource $count)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "triptych.containerSecurity" -}}
{{- $context := deepCopy .settings.securityContext -}}
{{- if .settings.rdma.ipcLock -}}
{{- $drop := dig "capabilities" "drop" (list "ALL") $context -}}
{{- $_ := set $context "capabilities" (dict "drop" $drop "add" (list "IPC_LOCK")) -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Copies of a pool keep apart, on nodes and in zones. */}}
{{- define "triptych.spread" -}}
{{- $rules := list -}}
{{- $selector := include "triptych.poolLabels" (list .root .pool) | fromYaml -}}
{{- range $key, $topology := dict "zone" "topology.kubernetes.io/zone" "host" "kubernetes.io/hostname" -}}
{{- $how := get $.settings.spread $key -}}
{{- if ne $how "none" -}}
{{- $rule := dict "maxSkew" 1 "topologyKey" $topology "whenUnsatisfiable" (ternary "DoNotSchedule" "ScheduleAnyway" (eq $how "hard")) "labelSelector" (dict "matchLabels" $selector) -}}
{{- with $.hash -}}
{{- $_ := set $rule "matchLabelKeys" (list .) -}}
{{- end -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- end -}}
{{- if $rules -}}{{- toYaml $rules -}}{{- end -}}
{{- end -}}

{{/* The pool's own affinity; FFN workers, which hold copies of each other's experts, avoid each other besides. */}}
{{- define "triptych.affinity" -}}
{{- $affinity := deepCopy (.settings.affinity | default dict) -}}
{{- $how := .settings.spread.host -}}
{{- if and (eq .role "ffn") (ne $how "none") (not $affinity.podAntiAffinity) -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "triptych.poolLabels" (list .root .pool) | fromYaml)) -}}
{{- if eq $how "hard" -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- else -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term))) -}}
{{- end -}}
{{- end -}}
{{- if $affinity -}}{{- toYaml $affinity -}}{{- end -}}
{{- end -}}
