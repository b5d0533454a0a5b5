"""Reads what replicas and gateways report and decides how many replicas a ModelDeployment should have."""
