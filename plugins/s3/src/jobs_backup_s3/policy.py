"""The narrowest IAM policy that suffices for a connection."""

from __future__ import annotations

import json
from typing import Any

from jobs_backup.model import Policy
from jobs_backup_s3.settings import Connection


def iam_policy(connection: Connection, *, delete: bool, replay: bool) -> Policy:
    """As JSON. AWS and MinIO read it alike."""
    actions = ["s3:PutObject", "s3:AbortMultipartUpload"]
    if connection.acl:
        actions.append("s3:PutObjectAcl")
    if delete:
        actions.append("s3:DeleteObject")
    if replay:
        actions.append("s3:GetObject")
    statements: list[dict[str, Any]] = [_allow("Objects", actions, connection.resource)]
    if replay:
        of_prefix = {"StringLike": {"s3:prefix": f"{connection.prefix}*"}}
        statements.append(_allow("List", ["s3:ListBucket"], connection.bucket_arn, of_prefix))
    if connection.kms_key_id:
        statements.append(_kms(connection.kms_key_id, connection.partition))
    return Policy(format="json", text=json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2) + "\n")


def spaces_policy(connection: Connection) -> Policy:
    """Spaces knows rights of a key on a bucket only, and none that can write but not read or delete."""
    grant = f"bucket={connection.bucket};permission=readwrite"
    return Policy(format="commands", text=f"doctl spaces keys create jobs-backup --grants '{grant}'\n")


def _kms(key: str, partition: str) -> dict[str, Any]:
    """Without a key of the owner's there is nothing to grant: everybody in the account may use AWS's own key through S3."""
    # Parts of an upload are encrypted one by one, and decrypted when it is completed.
    actions = ["kms:GenerateDataKey", "kms:Decrypt"]
    if key.startswith("alias/"):
        condition = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": key}}
        return _allow("Key", actions, f"arn:{partition}:kms:*:*:key/*", condition)
    return _allow("Key", actions, key if key.startswith("arn:") else f"arn:{partition}:kms:*:*:key/{key}")


def _allow(sid: str, actions: list[str], resource: str, condition: dict[str, Any] | None = None) -> dict[str, Any]:
    statement: dict[str, Any] = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})
