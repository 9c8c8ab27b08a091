resource "aws_iam_policy" "jobs_backup" {
  name   = "jobs-backup"
  policy = <<-EOT
    {
      "Version": "2012-10-17",
      "Statement": [
        {
          "Sid": "Objects",
          "Effect": "Allow",
          "Action": [
            "s3:PutObject",
            "s3:AbortMultipartUpload"
          ],
          "Resource": "arn:aws:s3:::my-events/*"
        }
      ]
    }
  EOT
}

# Or attach the policy to the role that your containers have.
resource "aws_iam_user" "jobs_backup" {
  name = "jobs-backup"
}

resource "aws_iam_user_policy_attachment" "jobs_backup" {
  user       = aws_iam_user.jobs_backup.name
  policy_arn = aws_iam_policy.jobs_backup.arn
}

# A bucket has one such resource: if it has one already, add the rule there.
resource "aws_s3_bucket_lifecycle_configuration" "jobs_backup" {
  bucket = "my-events"

  rule {
    id     = "abort-unfinished-multipart-uploads"
    status = "Enabled"

    filter {
      prefix = ""
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}
