"""What should be there: pure builders of Kubernetes objects from a ModelDeployment, one file per kind."""
