//go:build tools

// Package tools pins the CoreDNS that e2e builds from source.
package tools

import _ "github.com/coredns/coredns"
