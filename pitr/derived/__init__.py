"""Derived state: what applications keep in Redis, which a restored database makes wrong."""
