{{- define "labels" -}}
app.kubernetes.io/name: wg-overlay
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* The agent's configuration: the values that the chart itself needs, and the free ones. */}}
{{- define "config" -}}
{{- $own := dict
  "device" .Values.device
  "metricsAddress" (printf ":%v" .Values.metricsPort)
  "healthAddress" (printf "127.0.0.1:%v" .Values.healthPort)
  "cni" .Values.cni
-}}
{{- if ne .Values.device "kernel" }}{{ $_ := set $own "deviceSocket" "/run/wg-overlay/device.sock" }}{{ end -}}
{{- with .Values.apiServer }}{{ $_ := set $own "apiServer" . }}{{ end -}}
{{- if .Values.legacyAnnotations }}{{ $_ := set $own "legacyAnnotations" true }}{{ end -}}
{{- toYaml (merge (deepCopy .Values.config) $own) -}}
{{- end }}

{{/* What the pods of a node have in common. Their process is root of the node's network and of nothing else. */}}
{{- define "pod" -}}
hostNetwork: true
priorityClassName: system-node-critical
nodeSelector:
  kubernetes.io/os: linux
  {{- with .Values.nodeSelector }}{{ toYaml . | nindent 2 }}{{ end }}
tolerations:
- operator: Exists
terminationGracePeriodSeconds: 10
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "securityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
seccompProfile:
  type: RuntimeDefault
capabilities:
  drop: [ALL]
  add: [NET_ADMIN{{ if .Values.legacyIptables }}, NET_RAW{{ end }}]
{{- end }}

{{/* The agent and the cleanup touch the same things on a node. */}}
{{- define "mounts" -}}
- {name: config, mountPath: /etc/wg-overlay, readOnly: true}
- {name: run, mountPath: /run/wg-overlay}
- {name: uapi, mountPath: /var/run/wireguard}
- {name: lib, mountPath: /var/lib/wg-overlay}
- {name: cni-bin, mountPath: {{ .Values.cni.binDir }}}
- {name: cni-conf, mountPath: {{ .Values.cni.confDir }}}
- {name: machine-id, mountPath: /etc/machine-id, readOnly: true}
- {name: sysctl, mountPath: /host/proc/sys/net}
{{- if .Values.legacyIptables }}
- {name: xtables-lock, mountPath: /run/xtables.lock}
{{- end }}
{{- end }}

{{- define "volumes" -}}
- name: config
  configMap: {name: wg-overlay}
- name: run
  hostPath: {path: /run/wg-overlay, type: DirectoryOrCreate}
- name: uapi
  hostPath: {path: /run/wireguard, type: DirectoryOrCreate}
- name: lib
  hostPath: {path: /var/lib/wg-overlay, type: DirectoryOrCreate}
- name: cni-bin
  hostPath: {path: {{ .Values.cni.binDir }}, type: DirectoryOrCreate}
- name: cni-conf
  hostPath: {path: {{ .Values.cni.confDir }}, type: DirectoryOrCreate}
- name: machine-id
  hostPath: {path: /etc/machine-id, type: FileOrCreate}
# A pod's own /proc/sys is read-only.
- name: sysctl
  hostPath: {path: /proc/sys/net, type: Directory}
{{- if .Values.legacyIptables }}
- name: xtables-lock
  hostPath: {path: /run/xtables.lock, type: FileOrCreate}
{{- end }}
{{- end }}
