"""Least-privilege permissions: a role, a service account with that role on the bucket, and uniform access to the bucket."""

from __future__ import annotations

import json
import shlex
from typing import Final

from jobs_backup.model import Policy
from jobs_backup_gcs.settings import GcsSettings

_ACCOUNT: Final = "jobs-backup@$PROJECT.iam.gserviceaccount.com"
_WRITES: Final = ("write", "create_multipart", "write_part", "complete_multipart", "abort_multipart")
_LISTER: Final = "jobsBackupList"


def policy(settings: GcsSettings, *, delete: bool, replay: bool, format_: str) -> Policy:
    """Return the policy as gcloud commands, as JSON (the role for `gcloud iam roles create --file`), or for Terraform."""
    # Backups need get: an object that already exists under the key is compared with the one to write.
    grants = dict.fromkeys(_WRITES, "storage.objects.create") | {"read": "storage.objects.get"}
    if delete:
        grants["delete"] = "storage.objects.delete"
    permissions = list(dict.fromkeys(grants.values()))
    if replay:
        grants["list"] = "storage.objects.list"
    # Listing is a permission on the bucket: a condition on object names would never grant it.
    apart = replay and bool(settings.prefix.strip("/"))
    if replay and not apart:
        permissions.append("storage.objects.list")
    if format_ == "json":
        text = json.dumps(
            {"title": "jobs-backup", "stage": "GA", "includedPermissions": list(dict.fromkeys(grants.values()))}, indent=2
        )
        text += "\n"
    elif format_ == "terraform":
        text = _terraform(settings, permissions, lists_apart=apart)
    else:
        format_, text = "commands", _commands(settings, permissions, lists_apart=apart)
    return Policy(format=format_, text=text, grants=grants, resource=settings.resource)


def _condition(settings: GcsSettings) -> str:
    """Return the condition in Google's expression language; empty without a prefix. It needs uniform access to the bucket."""
    prefix = settings.prefix.strip("/").replace("\\", "\\\\").replace("'", "\\'")
    return f"resource.name.startsWith('projects/_/buckets/{settings.bucket}/objects/{prefix}/')" if prefix else ""


def _commands(settings: GcsSettings, permissions: list[str], *, lists_apart: bool) -> str:
    bucket = f"gs://{settings.bucket}"
    binding = (
        f"gcloud storage buckets add-iam-policy-binding {bucket} --member=serviceAccount:{_ACCOUNT} \\\n"
        "  --role=projects/$PROJECT/roles/"
    )
    lines = [
        "PROJECT=$(gcloud config get-value project)",
        f"gcloud storage buckets update {bucket} --uniform-bucket-level-access",
        f"gcloud iam roles create jobsBackup --project=$PROJECT --title=jobs-backup \\\n  --permissions={','.join(permissions)}",
        "gcloud iam service-accounts create jobs-backup --project=$PROJECT",
    ]
    if condition := _condition(settings):
        document = json.dumps({"title": "jobs-backup", "expression": condition}, ensure_ascii=False)
        lines += [f"cat > condition.json <<'END'\n{document}\nEND", f"{binding}jobsBackup --condition-from-file=condition.json"]
    else:
        lines.append(f"{binding}jobsBackup")
    if lists_apart:
        lines += [
            f"gcloud iam roles create {_LISTER} --project=$PROJECT --title=jobs-backup-list \\\n"
            "  --permissions=storage.objects.list",
            f"{binding}{_LISTER} --condition=None",
        ]
    if settings.kms_key:
        lines.append(f"gcloud storage service-agent --project=$PROJECT --authorize-cmek={shlex.quote(settings.kms_key)}")
    return "\n".join(lines) + "\n"


def _terraform(settings: GcsSettings, permissions: list[str], *, lists_apart: bool) -> str:
    condition = ""
    if expression := _condition(settings):
        condition = f"""
  condition {{
    title      = "jobs-backup"
    expression = {_quoted(expression)}
  }}
"""
    text = f"""\
# The bucket needs uniform_bucket_level_access = true (google_storage_bucket).
{_role("jobs_backup", "jobsBackup", "jobs-backup", permissions)}
resource "google_service_account" "jobs_backup" {{
  account_id = "jobs-backup"
}}

{_member(settings, "jobs_backup", condition)}"""
    if lists_apart:
        text += f"""
{_role("jobs_backup_list", _LISTER, "jobs-backup-list", ["storage.objects.list"])}
{_member(settings, "jobs_backup_list", "")}"""
    if settings.kms_key:
        text += f"""
data "google_storage_project_service_account" "jobs_backup" {{}}

resource "google_kms_crypto_key_iam_member" "jobs_backup" {{
  crypto_key_id = {_quoted(settings.kms_key)}
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = data.google_storage_project_service_account.jobs_backup.member
}}
"""
    return text


def _role(name: str, id_: str, title: str, permissions: list[str]) -> str:
    return f"""\
resource "google_project_iam_custom_role" "{name}" {{
  role_id     = "{id_}"
  title       = "{title}"
  permissions = {json.dumps(permissions)}
}}
"""


def _member(settings: GcsSettings, role: str, condition: str) -> str:
    return f"""\
resource "google_storage_bucket_iam_member" "{role}" {{
  bucket = {_quoted(settings.bucket)}
  role   = google_project_iam_custom_role.{role}.name
  member = google_service_account.jobs_backup.member
{condition}}}
"""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")
