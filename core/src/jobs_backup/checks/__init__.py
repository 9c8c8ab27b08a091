"""Checks before anything is at stake: permissions in the bucket, and whether a provider obeys its contract."""
