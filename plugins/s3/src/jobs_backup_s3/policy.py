"""Least-privilege permissions for a connection: an IAM policy, and how to grant it in each store."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any, Final

from jobs_backup.errors import ConfigurationError, NotSupported
from jobs_backup.model import Policy
from jobs_backup_s3.settings import SPACES_PERMISSION, Connection

_WRITES: Final = ("write", "create_multipart", "write_part", "complete_multipart")
_SESSION: Final = "s3express:CreateSession"
_DAYS: Final = 7
"""Days after which a rule of the bucket aborts an incomplete upload."""


def aws_policy(connection: Connection, *, delete: bool, replay: bool, format_: str) -> Policy:
    """Return an IAM policy for AWS. `commands` and `terraform` add a user with this policy and a rule for incomplete uploads."""
    document = _document(connection, delete=delete, replay=replay)
    if format_ == "commands":
        text = _aws_commands(connection, document)
    elif format_ == "terraform":
        text = _aws_terraform(connection, document)
    else:
        format_, text = "json", document + "\n"
    return _policy(connection, format_, text, delete=delete, replay=replay)


def minio_policy(connection: Connection, *, delete: bool, replay: bool, format_: str) -> Policy:
    """A policy for MinIO, which reads IAM policies as AWS does. Attach it with the client (docs.min.io: `mc admin policy`)."""
    document = _document(connection, delete=delete, replay=replay)
    if format_ == "terraform":
        raise NotSupported("MinIO policies are not available for Terraform", hint="use --format json or --format commands")
    if format_ != "commands":
        return _policy(connection, "json", document + "\n", delete=delete, replay=replay)
    lines = [
        "# ALIAS: this MinIO's name in `mc alias set`. Choose the two keys.",
        _heredoc(document),
        "mc admin policy create ALIAS jobs-backup policy.json",
        "mc admin user add ALIAS ACCESS_KEY SECRET_KEY",
        "mc admin policy attach ALIAS jobs-backup --user ACCESS_KEY",
    ]
    return _policy(connection, "commands", "\n".join(lines) + "\n", delete=delete, replay=replay)


def spaces_policy(connection: Connection, *, format_: str) -> Policy:
    """Return the key to create for Spaces. It grants a key permissions on a whole bucket; none allows writing without reading and
    deleting."""
    if format_ == "json":
        raise NotSupported("Spaces has no policies in JSON", hint="use --format commands or --format terraform")
    if format_ == "terraform":
        text = f"""\
resource "digitalocean_spaces_key" "jobs_backup" {{
  name = "jobs-backup"

  grant {{
    bucket     = {_quoted(connection.bucket)}
    permission = "readwrite"
  }}
}}
"""
    else:
        format_ = "commands"
        text = f"doctl spaces keys create jobs-backup --grants 'bucket={connection.bucket};permission=readwrite'\n"
    grants: dict[str, str] = dict.fromkeys((*_WRITES, "abort_multipart", "delete", "read", "list"), SPACES_PERMISSION)
    return Policy(format=format_, text=text, grants=grants, resource=connection.bucket)


def _policy(connection: Connection, format_: str, text: str, *, delete: bool, replay: bool) -> Policy:
    grants = dict.fromkeys(_WRITES, "s3:PutObject") | {"abort_multipart": "s3:AbortMultipartUpload"}
    if delete:
        grants["delete"] = "s3:DeleteObject"
    if replay:
        grants |= {"read": "s3:GetObject", "list": "s3:ListBucket"}
    if connection.is_directory:
        grants = dict.fromkeys(grants, _SESSION)
    return Policy(format=format_, text=text, grants=grants, resource=connection.resource)


def _document(connection: Connection, *, delete: bool, replay: bool) -> str:
    if connection.is_aws and connection.bucket.endswith("-s3alias"):
        raise ConfigurationError(
            "JOBS_BACKUP_BUCKET is the alias of an access point, and an IAM policy on an alias grants nothing",
            hint="set it to the access point's ARN: arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME",
        )
    if connection.is_directory:
        # Its sessions can read, write, list and delete everything in the bucket: no narrower permission can write.
        statements = [_allow("Session", [_SESSION], connection.bucket_arn)]
        if connection.is_directory_access_point:
            # The bucket behind it must allow it too. Its name is unknown here, but it is in the same zone.
            zone = connection.bucket.removesuffix("--xa-s3").rpartition("--")[2]
            behind = connection.bucket_arn.partition(":accesspoint/")[0] + f":bucket/*--{zone}--x-s3"
            through = {"ArnLike": {"s3express:DataAccessPointArn": connection.bucket_arn}}
            statements.append(_allow("SessionBehind", [_SESSION], behind, through))
    else:
        statements = list(_statements(connection, delete=delete, replay=replay))
    if connection.kms_key_id:
        statements.append(_kms(connection.kms_key_id, connection))
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)


def _statements(connection: Connection, *, delete: bool, replay: bool) -> Iterator[dict[str, Any]]:
    actions = ["s3:PutObject", "s3:AbortMultipartUpload"]
    if connection.acl:
        actions.append("s3:PutObjectAcl")
    if delete:
        actions.append("s3:DeleteObject")
    if replay:
        actions.append("s3:GetObject")
    # The bucket behind an access point must allow these actions too. Its name is unknown here.
    through = {"StringEquals": {"s3:DataAccessPointArn": connection.bucket}} if connection.is_access_point else {}
    yield _allow("Objects", actions, connection.resource)
    if through:
        yield _allow("ObjectsBehind", actions, f"arn:{connection.partition}:s3:::*/{connection.prefix_pattern}*", through)
    if replay:
        # A request that names no prefix does not meet the condition, so omit it if there is no prefix.
        of_prefix = {"StringLike": {"s3:prefix": f"{connection.prefix_pattern}*"}} if connection.prefix else {}
        yield _allow("List", ["s3:ListBucket"], connection.bucket_arn, of_prefix)
        if through:
            yield _allow("ListBehind", ["s3:ListBucket"], f"arn:{connection.partition}:s3:::*", through | of_prefix)


def _aws_commands(connection: Connection, document: str) -> str:
    rules = {"Rules": [_lifecycle_rule(connection)]}
    # A rule belongs to the bucket, even if an access point is used.
    is_behind = connection.is_access_point or connection.is_directory_access_point
    bucket = "BUCKET" if is_behind else connection.bucket
    return "\n".join([
        _heredoc(document),
        "aws iam create-user --user-name jobs-backup",
        "aws iam put-user-policy --user-name jobs-backup --policy-name jobs-backup --policy-document file://policy.json",
        "aws iam create-access-key --user-name jobs-backup",
        *(["# BUCKET: the bucket behind the access point."] if is_behind else []),
        "# Abort unfinished uploads after some days. This replaces the bucket's other rules: if there are any, add it to them.",
        f"aws s3api put-bucket-lifecycle-configuration --bucket {bucket} --lifecycle-configuration \\\n"
        f"  {shlex.quote(json.dumps(rules))}",
    ]) + "\n"  # fmt: skip


def _lifecycle_rule(connection: Connection) -> dict[str, Any]:
    return {
        "ID": "abort-unfinished-multipart-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": connection.prefix},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _DAYS},
    }


def _aws_terraform(connection: Connection, document: str) -> str:
    is_behind = connection.is_access_point or connection.is_directory_access_point
    return f"""\
resource "aws_iam_policy" "jobs_backup" {{
  name   = "jobs-backup"
  policy = <<-EOT
{_indented(document)}
  EOT
}}

# Or attach the policy to the role that your containers have.
resource "aws_iam_user" "jobs_backup" {{
  name = "jobs-backup"
}}

resource "aws_iam_user_policy_attachment" "jobs_backup" {{
  user       = aws_iam_user.jobs_backup.name
  policy_arn = aws_iam_policy.jobs_backup.arn
}}

# A bucket has one such resource: if it has one already, add the rule there.
resource "aws_s3_bucket_lifecycle_configuration" "jobs_backup" {{
  bucket = {_quoted("BUCKET-BEHIND-THE-ACCESS-POINT" if is_behind else connection.bucket)}

  rule {{
    id     = "abort-unfinished-multipart-uploads"
    status = "Enabled"

    filter {{
      prefix = {_quoted(connection.prefix)}
    }}

    abort_incomplete_multipart_upload {{
      days_after_initiation = {_DAYS}
    }}
  }}
}}
"""


def _kms(key: str, connection: Connection) -> dict[str, Any]:
    """Allow use of the owner's KMS key. AWS's own key needs no grant: everyone in the account can use it through S3."""
    # An upload's parts are encrypted one by one, and decrypted when it is completed.
    actions = ["kms:GenerateDataKey", "kms:Decrypt"]
    place, slash, alias = key.partition("alias/")
    if slash and (not place or place.startswith("arn:")):
        # IAM compares key ARNs: an alias as the resource grants nothing, written alone or as an ARN.
        keys = f"{place}key/*" if place else f"arn:{connection.partition}:kms:*:*:key/*"
        return _allow("Key", actions, keys, {"ForAnyValue:StringEquals": {"kms:ResourceAliases": f"alias/{alias}"}})
    return _allow("Key", actions, key if place.startswith("arn:") else f"arn:{connection.partition}:kms:*:*:key/{key}")


def _allow(sid: str, actions: list[str], resource: str, condition: dict[str, Any] | None = None) -> dict[str, Any]:
    statement: dict[str, Any] = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})


def _heredoc(document: str) -> str:
    return f"cat > policy.json <<'END'\n{document}\nEND"


def _indented(document: str) -> str:
    escaped = document.replace("${", "$${").replace("%{", "%%{")  # otherwise Terraform reads it as a template
    return "\n".join(f"    {line}" for line in escaped.splitlines())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")
