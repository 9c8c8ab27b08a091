"""Storage providers for S3, MinIO and DigitalOcean Spaces."""
