{{- define "flexpipe.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "flexpipe.selector" -}}
app.kubernetes.io/name: flexpipe
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "flexpipe.labels" -}}
{{ include "flexpipe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Longer than everything that the daemon does between SIGTERM and its end: moving off the node, then requests under way. */}}
{{- define "flexpipe.graceSeconds" -}}
{{- add (int .Values.drain.moveSeconds) (int .Values.drain.requestSeconds) (int .Values.drain.marginSeconds) -}}
{{- end -}}

{{- define "flexpipe.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
