# The bucket needs uniform_bucket_level_access = true (google_storage_bucket).
resource "google_project_iam_custom_role" "jobs_backup" {
  role_id     = "jobsBackup"
  title       = "jobs-backup"
  permissions = ["storage.objects.create", "storage.objects.get"]
}

resource "google_service_account" "jobs_backup" {
  account_id = "jobs-backup"
}

resource "google_storage_bucket_iam_member" "jobs_backup" {
  bucket = "my-events"
  role   = google_project_iam_custom_role.jobs_backup.name
  member = google_service_account.jobs_backup.member
}
