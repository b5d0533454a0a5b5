"""`kubectl octavo …`: what is in a cluster, why, and what to do about it. Reads with the rights of who asks."""
