{{/* Prefix of all names: the release, with the chart's name unless the release already says it. A release may have dots in
     its name, a Service may not. */}}
{{- define "octavo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Prefix of cluster-scoped names, which two releases in two namespaces must not share. */}}
{{- define "octavo.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "octavo.fullname" .) -}}
{{- end -}}

{{/* Labels of an object. Call with (dict "root" $ "component" "gateway"). */}}
{{- define "octavo.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "octavo.selectorLabels" . }}
{{- end -}}

{{/* Labels that select a component's pods; they never change. The first and last are known to the operator. */}}
{{- define "octavo.selectorLabels" -}}
app.kubernetes.io/name: octavo
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Reference of an image. Call with (dict "root" $ "image" .Values.images.serverCPU "suffix" "-cpu"). */}}
{{- define "octavo.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default (printf "%s%s" .root.Chart.AppVersion (default "" .suffix)) .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* URL that clients inside the cluster use; it becomes status.endpoint. */}}
{{- define "octavo.gatewayURL" -}}
{{- printf "%s://%s-gateway.%s.svc:%d" (ternary "https" "http" (ne .Values.gateway.tls.secretName "")) (include "octavo.fullname" .) .Release.Namespace (int .Values.gateway.service.port) -}}
{{- end -}}

{{/* "true" where the adapter is served; `auto` and true are. */}}
{{- define "octavo.adapterServed" -}}
{{- if ne (toString .Values.metricsAdapter.enabled) "false" -}}true{{- end -}}
{{- end -}}

{{/* Placement and pull Secrets of a pod. Call with (dict "root" $ "component" "gateway"). */}}
{{- define "octavo.podPlacement" -}}
{{- $values := index .root.Values .component -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "octavo.selectorLabels" . | nindent 8 }}
{{- end -}}

{{/* Metadata of a pod template. Call with (dict "root" $ "component" "gateway"). */}}
{{- define "octavo.podMetadata" -}}
{{- $values := index .root.Values .component -}}
labels:
  {{- include "octavo.selectorLabels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Binds a ClusterRole: everywhere, or in each of .Values.namespaces.
     Call with (dict "root" $ "name" NAME "component" "gateway"). */}}
{{- define "octavo.bindWatched" -}}
{{- $root := .root -}}
{{- $name := .name -}}
{{- $component := .component -}}
{{- $labels := include "octavo.labels" . -}}
{{- $account := printf "%s-%s" (include "octavo.fullname" $root) $component -}}
{{- if $root.Values.namespaces }}
{{- range $namespace := $root.Values.namespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- $labels | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $account }}, namespace: {{ $root.Release.Namespace }}}
{{- end }}
{{- else }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- $labels | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $account }}, namespace: {{ $root.Release.Namespace }}}
{{- end }}
{{- end -}}

{{/* Where gateway and operator go: servers, gateways, names, the API server, and what the values add.
     Call with (dict "root" $ "component" "gateway"). */}}
{{- define "octavo.egress" -}}
{{- $egress := .root.Values.networkPolicies.egress -}}
- ports: [{port: 8000, protocol: TCP}]
  to:
    - namespaceSelector: {}
      podSelector:
        matchLabels:
          app.kubernetes.io/managed-by: octavo
          app.kubernetes.io/component: server
- ports: [{port: 8081, protocol: TCP}]
  to:
    - podSelector:
        matchLabels:
          {{- include "octavo.selectorLabels" (dict "root" .root "component" "gateway") | nindent 10 }}
# Names; wherever the cluster's resolver runs.
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
# The API server, which no selector can name.
- ports:
    {{- range $port := $egress.apiServerPorts }}
    - {port: {{ $port }}, protocol: TCP}
    {{- end }}
{{- with $egress.extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What the operator gives the NetworkPolicy of each ModelDeployment's pods, as one line of JSON: they answer nobody but
     Octavo and who scrapes, so that keys and quotas cannot be gone around. */}}
{{- define "octavo.serverNetworkPolicy" -}}
{{- $policies := .Values.networkPolicies -}}
{{- $types := list "Ingress" -}}
{{- $peers := list -}}
{{- range $component := list "gateway" "operator" -}}
{{- $labels := include "octavo.selectorLabels" (dict "root" $ "component" $component) | fromYaml -}}
{{- $namespace := dict "kubernetes.io/metadata.name" $.Release.Namespace -}}
{{- $peers = append $peers (dict "namespaceSelector" (dict "matchLabels" $namespace) "podSelector" (dict "matchLabels" $labels)) -}}
{{- end -}}
{{- $peers = concat $peers $policies.metricsFrom -}}
{{- $ports := list (dict "port" "http" "protocol" "TCP") -}}
{{- $rules := dict "policyTypes" $types "ingress" (list (dict "ports" $ports "from" $peers)) -}}
{{- if $policies.serverEgress.enabled -}}
{{- $dns := list (dict "port" 53 "protocol" "UDP") (dict "port" 53 "protocol" "TCP") -}}
{{- $https := list (dict "port" 443 "protocol" "TCP") -}}
{{- $egress := concat (list (dict "ports" $dns) (dict "ports" $https)) $policies.serverEgress.extra -}}
{{- $rules = merge (dict "policyTypes" (append $types "Egress") "egress" $egress) $rules -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}
