{{/* What containers see: the config, a run directory, /tmp, /dev/shm, certificates, keys, the model. */}}
{{- define "triptych.mounts" -}}
{{- /* By subPath: a running pod keeps the config that it was started with. */ -}}
- name: config
  mountPath: /etc/triptych/config.yaml
  subPath: config.yaml
  readOnly: true
- name: run
  mountPath: /run/triptych
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- if .root.Values.tls.enabled }}
- name: tls
  mountPath: /etc/triptych/tls
  readOnly: true
{{- end }}
{{- if and (eq .pool "router") .root.Values.apiKeys.existingSecret }}
- name: keys
  mountPath: /etc/triptych/keys
  readOnly: true
{{- end }}
{{- if or .root.Values.model.volume .root.Values.model.fetch.source }}
- name: model
  mountPath: {{ .root.Values.model.mountPath }}
  readOnly: true
{{- end }}
{{- with .settings.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "triptych.volumes" -}}
{{ include "triptych.configVolume" .root }}
- name: run
  emptyDir: {}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .shm | quote }}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "triptych.tlsSecret" .root }}
    defaultMode: 0440
{{- end }}
{{- if and (eq .pool "router") .root.Values.apiKeys.existingSecret }}
- name: keys
  secret:
    secretName: {{ .root.Values.apiKeys.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- if .root.Values.model.volume }}
- name: model
  {{- toYaml .root.Values.model.volume | nindent 2 }}
{{- else if .root.Values.model.fetch.source }}
- name: model
  emptyDir:
    {{- with .root.Values.model.fetch.sizeLimit }}
    sizeLimit: {{ . }}
    {{- end }}
{{- end }}
{{- with .settings.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "triptych.fetchTarget" -}}
{{- .Values.model.fetch.to | default .Values.model.mountPath -}}
{{- end -}}

{{/* Brings the model into its volume before anything reads it; there already: only looks. */}}
{{- define "triptych.fetch" -}}
{{- $fetch := .root.Values.model.fetch -}}
- name: fetch-model
  image: {{ include "triptych.image" (list .root .settings) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [triptych, fetch]
  args:
    - {{ $fetch.source | quote }}
    - --to={{ include "triptych.fetchTarget" .root }}
    {{- with $fetch.sha256 }}
    - --sha256={{ . }}
    {{- end }}
  env:
    - name: HOME
      value: /tmp
    - name: PYTHONUNBUFFERED
      value: "1"
    {{- with $fetch.tokenSecret.name }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ . }}
          key: {{ $fetch.tokenSecret.key }}
    {{- end }}
    {{- with $fetch.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $fetch.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .settings.securityContext | nindent 4 }}
  volumeMounts:
    - name: model
      mountPath: {{ .root.Values.model.mountPath }}
    - name: tmp
      mountPath: /tmp
{{- end -}}

{{/*
/dev/shm of a worker: as much as its KV pool and 64 MiB, for transports that share memory (UCX); the default
of 64 MiB ends in SIGBUS. Counts against the memory limit when it is written to. Call with (list $ pool settings).
*/}}
{{- define "triptych.shmSize" -}}
{{- $settings := index . 2 -}}
{{- if $settings.shmSize -}}
{{- $settings.shmSize -}}
{{- else if has (index . 1).role (list "prefill" "decode") -}}
{{- printf "%dMi" (add (div (include "triptych.kvBytes" (list (index . 0) (index . 1)) | int64) 1048576) 64) -}}
{{- else -}}
256Mi
{{- end -}}
{{- end -}}

{{- define "triptych.configVolume" -}}
- name: config
  {{- if include "triptych.configIsSecret" . }}
  secret:
    secretName: {{ include "triptych.fullname" . }}
  {{- else }}
  configMap:
    name: {{ include "triptych.fullname" . }}
  {{- end }}
{{- end -}}
