"""Google Cloud Storage for jobs-backup, on google-cloud-storage."""
