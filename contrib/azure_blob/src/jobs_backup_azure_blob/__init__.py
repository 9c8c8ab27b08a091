"""Azure Blob Storage for jobs-backup, on azure-storage-blob."""
