{{- define "triptych.tlsSecret" -}}
{{- if eq .Values.tls.source "secret" -}}
{{- required "tls.secretName: name the Secret with tls.crt, tls.key and ca.crt" .Values.tls.secretName -}}
{{- else -}}
{{- printf "%s-tls" (include "triptych.fullname" .) -}}
{{- end -}}
{{- end -}}
