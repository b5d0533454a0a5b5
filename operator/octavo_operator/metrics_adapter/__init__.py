"""Serves `custom.metrics.k8s.io` from the operator, so that an HPA needs no other install."""
