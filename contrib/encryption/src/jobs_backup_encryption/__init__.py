"""Encrypts objects before they leave the machine: a wrapper for jobs-backup."""
