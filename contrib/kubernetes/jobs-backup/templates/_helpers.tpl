{{/*
Other charts may call those without an underscore, with this chart's scope: `(index .Subcharts "jobs-backup")`.
  jobs-backup.container                      a list item: the container
  jobs-backup.volumes                        list items: what it mounts, except the spool
  jobs-backup.volumeClaimTemplate            a list item: the spool, for a StatefulSet; none with `spool.postgresql`
  jobs-backup.env, jobs-backup.envFrom, jobs-backup.volumeMounts
                                             list items: for a container that records with the library
  jobs-backup.serviceAccountName, jobs-backup.terminationGracePeriodSeconds
*/}}

{{- define "jobs-backup.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters: a StatefulSet's pods have a label with its name and a hash of 11 characters. */}}
{{- define "jobs-backup.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "jobs-backup.selectorLabels" -}}
app.kubernetes.io/name: {{ include "jobs-backup.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "jobs-backup.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "jobs-backup.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "jobs-backup.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "jobs-backup.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "jobs-backup.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* Whether the spool is in PostgreSQL, which any number of pods share. */}}
{{- define "jobs-backup._isFleet" -}}
{{- if or .Values.spool.postgresql.url .Values.spool.postgresql.existingSecret }}true{{ end }}
{{- end }}

{{/* The Secret with the database's password, if it is one: with a URL in the Secret, the password is part of that. */}}
{{- define "jobs-backup._passwordSecret" -}}
{{- with .Values.spool.postgresql }}{{ if .url }}{{ .existingSecret }}{{ end }}{{ end }}
{{- end }}

{{/* `serve` or `archive`. */}}
{{- define "jobs-backup._command" -}}
{{- if eq .Values.mode "sidecar" }}{{ .Values.sidecar.command }}{{ else if eq .Values.mode "archive" }}archive{{ else }}serve{{ end }}
{{- end }}

{{- define "jobs-backup._preStopSleep" -}}
{{- if eq .Values.mode "server" }}{{ .Values.preStopSleep }}{{ else }}0{{ end }}
{{- end }}

{{/* More than the time for uploading and the sleep before it: otherwise the process is killed while it uploads. */}}
{{- define "jobs-backup.terminationGracePeriodSeconds" -}}
{{- $least := add .Values.shutdownGrace (int (include "jobs-backup._preStopSleep" .)) }}
{{- $given := .Values.terminationGracePeriodSeconds }}
{{- if kindIs "invalid" $given }}
{{- add $least 10 }}
{{- else if le (int64 $given) $least }}
{{- fail (printf "terminationGracePeriodSeconds is %d: it has to be more than shutdownGrace and preStopSleep together, %d" (int64 $given) $least) }}
{{- else }}
{{- int64 $given }}
{{- end }}
{{- end }}

{{/* The data of the Secret that this release creates if any of the values are secrets. */}}
{{- define "jobs-backup._secretData" -}}
{{- $data := dict }}
{{- with .Values.server.token }}{{ $_ := set $data "JOBS_BACKUP_SERVER_TOKEN" . }}{{ end }}
{{- with .Values.server.writeKeys }}{{ $_ := set $data "JOBS_BACKUP_SERVER_WRITE_KEYS" . }}{{ end }}
{{- $provider := .Values.storage.provider }}
{{- if and (eq $provider "S3") .Values.s3.accessKeyId }}
{{- $_ := set $data "AWS_ACCESS_KEY_ID" .Values.s3.accessKeyId }}
{{- $_ := set $data "AWS_SECRET_ACCESS_KEY" .Values.s3.secretAccessKey }}
{{- else if and (eq $provider "GCS") .Values.gcs.credentials }}
{{- $_ := set $data .Values.gcs.key .Values.gcs.credentials }}
{{- else if and (eq $provider "MINIO") .Values.minio.accessKeyId }}
{{- $_ := set $data "MINIO_ACCESS_KEY_ID" .Values.minio.accessKeyId }}
{{- $_ := set $data "MINIO_SECRET_ACCESS_KEY" .Values.minio.secretAccessKey }}
{{- else if and (eq $provider "DIGITAL_OCEAN_SPACES") .Values.spaces.accessKeyId }}
{{- $_ := set $data "DO_SPACES_ACCESS_KEY_ID" .Values.spaces.accessKeyId }}
{{- $_ := set $data "DO_SPACES_SECRET_ACCESS_KEY" .Values.spaces.secretAccessKey }}
{{- end }}
{{- if $data }}{{ toYaml $data }}{{ end }}
{{- end }}

{{/* (name, secret, key, optional): a variable with its value in a Secret. */}}
{{- define "jobs-backup._fromSecret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
      {{- if .optional }}
      optional: true
      {{- end }}
{{ end }}

{{/* (of, own, id, key): a provider's pair of keys, from the existing Secret or our own. */}}
{{- define "jobs-backup._keys" -}}
{{- if .of.existingSecret }}
{{- include "jobs-backup._fromSecret" (dict "name" .id "secret" .of.existingSecret "key" .of.keys.accessKeyId) }}
{{- include "jobs-backup._fromSecret" (dict "name" .key "secret" .of.existingSecret "key" .of.keys.secretAccessKey) }}
{{- else if .of.accessKeyId }}
{{- include "jobs-backup._fromSecret" (dict "name" .id "secret" .own "key" .id) }}
{{- include "jobs-backup._fromSecret" (dict "name" .key "secret" .own "key" .key) }}
{{- end }}
{{- end }}

{{/* (name, value): a variable, if it has a value. */}}
{{- define "jobs-backup._if" -}}
{{- if .value }}
- name: {{ .name }}
  value: {{ .value | toString | quote }}
{{ end }}
{{- end }}

{{/* The variables that every process on a spool needs, without `extraEnv`. */}}
{{- define "jobs-backup._ownEnv" -}}
{{- $own := include "jobs-backup.fullname" . }}
{{- $provider := .Values.storage.provider -}}
- name: JOBS_BACKUP_STORAGE_PROVIDER
  value: {{ default $provider .Values.storage.customProvider | quote }}
- name: JOBS_BACKUP_BUCKET
  value: {{ .Values.storage.bucket | quote }}
- name: JOBS_BACKUP_PREFIX
  value: {{ .Values.storage.prefix | quote }}
- name: INSTANCE_ID
  {{- if .Values.instanceId }}
  value: {{ .Values.instanceId | quote }}
  {{- else }}
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
  {{- end }}
{{- if include "jobs-backup._isFleet" . }}
{{- with .Values.spool.postgresql }}
{{- if .url }}
- name: JOBS_BACKUP_SPOOL
  value: {{ .url | quote }}
{{- else }}
{{ include "jobs-backup._fromSecret" (dict "name" "JOBS_BACKUP_SPOOL" "secret" .existingSecret "key" .keys.url) | trim }}
{{- end }}
{{- end }}
{{- if include "jobs-backup._passwordSecret" . }}
# A file and not a variable: it is read for each connection, so a new password needs no restart.
- name: JOBS_BACKUP_SPOOL_PASSWORD_COMMAND
  value: cat /etc/jobs-backup/postgresql/password
{{- else }}
{{ include "jobs-backup._if" (dict "name" "JOBS_BACKUP_SPOOL_PASSWORD_COMMAND" "value" .Values.spool.postgresql.passwordCommand) | trim }}
{{- end }}
# The image sets it, and both together are refused.
- name: JOBS_BACKUP_SPOOL_DIR
  value: ""
{{- else }}
- name: JOBS_BACKUP_SPOOL_DIR
  value: {{ .Values.spool.mountPath | quote }}
{{- end }}
- name: JOBS_BACKUP_SHUTDOWN_GRACE
  value: {{ printf "%ds" (int .Values.shutdownGrace) | quote }}
{{ include "jobs-backup._if" (dict "name" "JOBS_BACKUP_SPOOL_MAX_BYTES" "value" .Values.spool.maxBytes) }}
{{- include "jobs-backup._if" (dict "name" "JOBS_BACKUP_WORKSPACE_ID" "value" .Values.workspaceId) }}
{{- if eq $provider "S3" }}
{{- with .Values.s3 }}
{{- include "jobs-backup._if" (dict "name" "AWS_REGION" "value" .region) }}
{{- include "jobs-backup._if" (dict "name" "AWS_ENDPOINT_URL_S3" "value" .endpoint) }}
{{- include "jobs-backup._if" (dict "name" "JOBS_BACKUP_S3_SSE" "value" .sse) }}
{{- include "jobs-backup._if" (dict "name" "JOBS_BACKUP_S3_KMS_KEY_ID" "value" .kmsKeyId) }}
{{- include "jobs-backup._if" (dict "name" "BACKUP_IAM_ROLE_ARN" "value" .roleArn) }}
{{- include "jobs-backup._if" (dict "name" "JOBS_BACKUP_S3_EXTERNAL_ID" "value" .externalId) }}
{{- include "jobs-backup._keys" (dict "of" . "own" $own "id" "AWS_ACCESS_KEY_ID" "key" "AWS_SECRET_ACCESS_KEY") }}
{{- end }}
{{- else if eq $provider "GCS" }}
{{- if or .Values.gcs.credentials .Values.gcs.existingSecret }}
{{- include "jobs-backup._if" (dict "name" "GOOGLE_APPLICATION_CREDENTIALS" "value" (printf "%s/%s" .Values.gcs.mountPath .Values.gcs.key)) }}
{{- end }}
{{- include "jobs-backup._if" (dict "name" "JOBS_BACKUP_GCS_KMS_KEY" "value" .Values.gcs.kmsKey) }}
{{- include "jobs-backup._if" (dict "name" "JOBS_BACKUP_GCS_STORAGE_CLASS" "value" .Values.gcs.storageClass) }}
{{- else if eq $provider "MINIO" }}
{{- with .Values.minio }}
{{- include "jobs-backup._if" (dict "name" "MINIO_ENDPOINT" "value" .endpoint) }}
{{- include "jobs-backup._if" (dict "name" "MINIO_SSL" "value" .ssl) }}
{{- include "jobs-backup._keys" (dict "of" . "own" $own "id" "MINIO_ACCESS_KEY_ID" "key" "MINIO_SECRET_ACCESS_KEY") }}
{{- end }}
{{- else if eq $provider "DIGITAL_OCEAN_SPACES" }}
{{- with .Values.spaces }}
{{- include "jobs-backup._if" (dict "name" "DO_SPACES_ENDPOINT" "value" .endpoint) }}
{{- include "jobs-backup._keys" (dict "of" . "own" $own "id" "DO_SPACES_ACCESS_KEY_ID" "key" "DO_SPACES_SECRET_ACCESS_KEY") }}
{{- end }}
{{- end }}
{{- end }}

{{/* The variables of the process itself. */}}
{{- define "jobs-backup._processEnv" -}}
- name: JOBS_BACKUP_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
- name: JOBS_BACKUP_METRICS_HOST
  value: {{ .Values.listen | quote }}
- name: JOBS_BACKUP_METRICS_PORT
  value: {{ .Values.metrics.port | quote }}
{{ if eq (include "jobs-backup._command" .) "serve" -}}
- name: JOBS_BACKUP_SERVER_HOST
  value: {{ ternary "localhost" .Values.listen (eq .Values.mode "sidecar") | quote }}
- name: JOBS_BACKUP_SERVER_PORT
  value: {{ .Values.server.port | quote }}
{{ $own := include "jobs-backup.fullname" . }}
{{- with .Values.server }}
{{- if .existingSecret }}
{{- include "jobs-backup._fromSecret" (dict "name" "JOBS_BACKUP_SERVER_TOKEN" "secret" .existingSecret "key" .keys.token "optional" true) }}
{{- include "jobs-backup._fromSecret" (dict "name" "JOBS_BACKUP_SERVER_WRITE_KEYS" "secret" .existingSecret "key" .keys.writeKeys "optional" true) }}
{{- else }}
{{- if .token }}{{ include "jobs-backup._fromSecret" (dict "name" "JOBS_BACKUP_SERVER_TOKEN" "secret" $own "key" "JOBS_BACKUP_SERVER_TOKEN") }}{{ end }}
{{- if .writeKeys }}{{ include "jobs-backup._fromSecret" (dict "name" "JOBS_BACKUP_SERVER_WRITE_KEYS" "secret" $own "key" "JOBS_BACKUP_SERVER_WRITE_KEYS") }}{{ end }}
{{- end }}
{{- if .tls.existingSecret -}}
- name: JOBS_BACKUP_SERVER_TLS_CERTIFICATE
  value: /etc/jobs-backup/tls/tls.crt
- name: JOBS_BACKUP_SERVER_TLS_KEY
  value: /etc/jobs-backup/tls/tls.key
{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Refuse duplicate names: the later value would silently replace the earlier one. */}}
{{- define "jobs-backup.env" -}}
{{- $own := include "jobs-backup._ownEnv" . | fromYamlArray }}
{{- $names := list }}
{{- range concat $own (include "jobs-backup._processEnv" . | fromYamlArray) }}{{ $names = append $names .name }}{{ end }}
{{- range .Values.extraEnv }}
{{- if has .name $names }}{{ fail (printf "extraEnv: %s is set by the chart, from other values, or is listed twice" .name) }}{{ end }}
{{- $names = append $names .name }}
{{- end }}
{{- concat $own .Values.extraEnv | toYaml }}
{{- end }}

{{- define "jobs-backup.envFrom" -}}
{{- toYaml .Values.extraEnvFrom }}
{{- end }}

{{- define "jobs-backup._hasKeyFile" -}}
{{- if and (eq .Values.storage.provider "GCS") (or .Values.gcs.credentials .Values.gcs.existingSecret) }}true{{ end }}
{{- end }}

{{- define "jobs-backup.volumeMounts" -}}
{{- if not (include "jobs-backup._isFleet" .) }}
- name: jobs-backup-spool
  mountPath: {{ .Values.spool.mountPath }}
{{- end }}
{{- if include "jobs-backup._passwordSecret" . }}
- name: jobs-backup-postgresql
  mountPath: /etc/jobs-backup/postgresql
  readOnly: true
{{- end }}
{{- if include "jobs-backup._hasKeyFile" . }}
- name: jobs-backup-gcs
  mountPath: {{ .Values.gcs.mountPath }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "jobs-backup.volumes" -}}
- name: jobs-backup-tmp
  emptyDir: {}
{{- if include "jobs-backup._hasKeyFile" . }}
- name: jobs-backup-gcs
  secret:
    secretName: {{ default (include "jobs-backup.fullname" .) .Values.gcs.existingSecret }}
    defaultMode: 0440
    items:
      - key: {{ .Values.gcs.key }}
        path: {{ .Values.gcs.key }}
{{- end }}
{{- with include "jobs-backup._passwordSecret" . }}
- name: jobs-backup-postgresql
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: {{ $.Values.spool.postgresql.keys.password }}
        path: password
{{- end }}
{{- if and .Values.server.tls.existingSecret (eq (include "jobs-backup._command" .) "serve") }}
- name: jobs-backup-tls
  secret:
    secretName: {{ .Values.server.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "jobs-backup.volumeClaimTemplate" -}}
{{- if include "jobs-backup._isFleet" . }}{{ fail "jobs-backup.volumeClaimTemplate: with spool.postgresql there is no claim; remove the call" }}{{ end }}
- metadata:
    name: jobs-backup-spool
    labels:
      {{- include "jobs-backup.selectorLabels" . | nindent 6 }}
    {{- with .Values.spool.annotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    accessModes: ["ReadWriteOnce"]
    {{- with .Values.spool.storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .Values.spool.size }}
{{- end }}

{{/* (path, values). Uses the metrics port: it needs no TLS or token, and answers even if the other port has no connections left. */}}
{{- define "jobs-backup._probe" -}}
httpGet:
  path: {{ .path }}
  port: jb-metrics
{{ toYaml .values }}
{{- end }}

{{- define "jobs-backup.container" -}}
- name: jobs-backup
  image: {{ include "jobs-backup.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [{{ include "jobs-backup._command" . | quote }}]
  {{- if and (eq .Values.mode "sidecar") .Values.sidecar.native }}
  restartPolicy: Always
  {{- end }}
  env:
    {{- include "jobs-backup.env" . | nindent 4 }}
    {{- include "jobs-backup._processEnv" . | fromYamlArray | toYaml | nindent 4 }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    {{- if eq .Values.mode "server" }}
    - name: jb-events
      containerPort: {{ .Values.server.port }}
      protocol: TCP
    {{- end }}
    - name: jb-metrics
      containerPort: {{ .Values.metrics.port }}
      protocol: TCP
  startupProbe:
    {{- include "jobs-backup._probe" (dict "path" "/healthz" "values" .Values.startupProbe) | nindent 4 }}
  livenessProbe:
    {{- include "jobs-backup._probe" (dict "path" "/healthz" "values" .Values.livenessProbe) | nindent 4 }}
  readinessProbe:
    {{- include "jobs-backup._probe" (dict "path" "/readyz" "values" .Values.readinessProbe) | nindent 4 }}
  {{- if gt (int (include "jobs-backup._preStopSleep" .)) 0 }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.preStopSleep }}
  {{- end }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    {{- with include "jobs-backup.volumeMounts" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    - name: jobs-backup-tmp
      mountPath: /tmp
    {{- if and .Values.server.tls.existingSecret (eq (include "jobs-backup._command" .) "serve") }}
    - name: jobs-backup-tls
      mountPath: /etc/jobs-backup/tls
      readOnly: true
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The other containers of our own pods. In mode `archive` they record, and get the settings and the spool before their own values. */}}
{{- define "jobs-backup._extraContainers" -}}
{{- $root := . }}
{{- range .Values.extraContainers }}
{{- $container := deepCopy . }}
{{- if eq $root.Values.mode "archive" }}
{{- $_ := set $container "env" (concat (include "jobs-backup.env" $root | fromYamlArray) (default list .env)) }}
{{- with concat $root.Values.extraEnvFrom (default list .envFrom) }}{{ $_ := set $container "envFrom" . }}{{ end }}
{{- $_ := set $container "volumeMounts" (concat (include "jobs-backup.volumeMounts" $root | fromYamlArray | default list) (default list .volumeMounts)) }}
{{- end }}
{{ list $container | toYaml }}
{{- end }}
{{- end }}

{{/* The pods of a StatefulSet, or of a fleet's Deployment. */}}
{{- define "jobs-backup._podTemplate" -}}
metadata:
  labels:
    {{- include "jobs-backup.selectorLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: jobs-backup
    {{- with include "jobs-backup._secretData" . }}
    checksum/secret: {{ sha256sum . }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "jobs-backup.serviceAccountName" . }}
  automountServiceAccountToken: {{ .Values.automountServiceAccountToken }}
  # Otherwise Kubernetes sets JOBS_BACKUP_PORT and the like for a Service named jobs-backup.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "jobs-backup.terminationGracePeriodSeconds" . }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  containers:
    {{- include "jobs-backup.container" . | nindent 4 }}
    {{- with include "jobs-backup._extraContainers" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "jobs-backup.volumes" . | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
