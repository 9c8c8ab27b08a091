"""The narrowest rights that suffice, as commands of gcloud."""

from __future__ import annotations

from typing import Final

from jobs_backup.model import Policy
from jobs_backup_gcs.settings import GcsSettings

_ACCOUNT: Final = "jobs-backup@$PROJECT.iam.gserviceaccount.com"


def commands(settings: GcsSettings, *, delete: bool, replay: bool) -> Policy:
    """A role, a service account that has it on this bucket (and prefix) alone, and uniform access to the bucket."""
    permissions = ["storage.objects.create", "storage.objects.get"]
    if delete:
        permissions.append("storage.objects.delete")
    if replay:
        permissions.append("storage.objects.list")
    prefix = settings.prefix.strip("/")
    # Listing is a right on the bucket: under a condition on objects' names it would never be granted.
    name = f"projects/_/buckets/{settings.bucket}/objects/{prefix}/"
    condition = (
        f" \\\n  --condition='title=jobs-backup,expression=resource.name.startsWith(\"{name}\")'" if prefix and not replay else ""
    )
    lines = [
        "PROJECT=$(gcloud config get-value project)",
        f"gcloud storage buckets update gs://{settings.bucket} --uniform-bucket-level-access",
        f"gcloud iam roles create jobsBackup --project=$PROJECT --title=jobs-backup \\\n  --permissions={','.join(permissions)}",
        "gcloud iam service-accounts create jobs-backup --project=$PROJECT",
        f"gcloud storage buckets add-iam-policy-binding gs://{settings.bucket} --member=serviceAccount:{_ACCOUNT} \\\n"
        f"  --role=projects/$PROJECT/roles/jobsBackup{condition}",
    ]
    if settings.kms_key:
        lines.append(
            f"gcloud storage service-agent --project=$PROJECT --authorize-cmek={settings.kms_key}",
        )
    return Policy(format="commands", text="\n".join(lines) + "\n")
