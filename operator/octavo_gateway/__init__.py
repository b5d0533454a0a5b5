"""The data plane in front of the replicas: routes by model, holds while none can serve, streams through."""
