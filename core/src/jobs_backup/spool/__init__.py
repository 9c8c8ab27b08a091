"""The durable store between the application and the bucket: `interface.py` says what it does, `engines.py` what it stands on."""
