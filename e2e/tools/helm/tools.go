//go:build tools

// Package tools pins the Helm that e2e builds from source.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
