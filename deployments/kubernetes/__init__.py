"""Running on Kubernetes: manifests, and what keeps replicas of the model server alike."""
