"""The durable store between the application and the bucket: `interface.py` defines it, `engines.py` picks its implementation."""
