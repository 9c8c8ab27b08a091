"""Object stores: the configured provider behind retries, its plugins and wrappers, and the provider FILE."""
