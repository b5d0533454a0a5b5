//go:build tools

// Package tools pins the kwok that e2e builds from source.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
