"""Helpers that know nothing about this product."""
