//go:build tools

// Package tools pins Prometheus' promtool, which tests alerts and reads every query of the dashboards.
package tools

import _ "github.com/prometheus/prometheus/cmd/promtool"
