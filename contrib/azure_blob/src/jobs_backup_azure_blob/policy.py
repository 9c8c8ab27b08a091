"""Least-privilege permissions: a role for an identity, assigned on the container, or a SAS with the same permissions."""

from __future__ import annotations

import json
from typing import Final

from jobs_backup.errors import NotSupported
from jobs_backup.model import Policy
from jobs_backup_azure_blob.errors import PERMISSIONS, permission
from jobs_backup_azure_blob.settings import AzureBlobSettings

_BLOBS: Final = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"
_ROLE: Final = "jobs-backup"
_OPERATIONS: Final = {
    "write": "Put Blob",
    "create_multipart": "Put Block",  # the first request that an upload sends
    "write_part": "Put Block",
    "complete_multipart": "Put Block List",
}
_NOTHING: Final = "none: no request is sent"


def policy(settings: AzureBlobSettings, *, delete: bool, replay: bool, format_: str) -> Policy:
    """Return the policy as az commands, or as JSON (the role for `az role definition create`).

    Raises:
        NotSupported: the format is Terraform.
    """
    operations = dict(_OPERATIONS)
    if delete:
        operations["delete"] = "Delete Blob"
    if replay:
        operations |= {"read": "Get Blob", "list": "List Blobs"}
    actions = sorted({f"{_BLOBS}/{PERMISSIONS[operation][0]}" for operation in operations.values()})
    letters = "".join(letter for letter in "rwdl" if letter in {PERMISSIONS[one][1] for one in operations.values()})
    if format_ == "terraform":
        raise NotSupported("AZURE_BLOB policies are not available for Terraform", hint="use --format json or --format commands")
    if format_ == "json":
        text = _role(actions, "/subscriptions/00000000-0000-0000-0000-000000000000") + "\n"
    else:
        format_, text = "commands", _commands(settings, actions, letters)
    grants = {hook: permission(operation) for hook, operation in operations.items()}
    return Policy(format=format_, text=text, grants=grants | {"abort_multipart": _NOTHING}, resource=settings.resource)


def _role(actions: list[str], scope: str) -> str:
    role = {
        "Name": _ROLE,
        "Description": "Backs up events into a container of blobs.",
        "Actions": [],
        "DataActions": actions,
        "AssignableScopes": [scope],
    }
    return json.dumps(role, indent=2)


def _condition(settings: AzureBlobSettings, actions: list[str]) -> str:
    """Return the role condition in Azure's language; empty without a prefix. Permission to list shows all blobs' names."""
    prefix = settings.prefix.strip("/").replace("'", "\\'")
    if not prefix:
        return ""
    listing = " AND NOT SubOperationMatches{'Blob.List'}"
    others = " AND ".join(f"!(ActionMatches{{'{one}'}}{listing if one.endswith('/read') else ''})" for one in actions)
    return f"(({others}) OR (@Resource[{_BLOBS}:path] StringStartsWith '{prefix}/'))"


def _commands(settings: AzureBlobSettings, actions: list[str], letters: str) -> str:
    account = settings.connection().account
    assignment = (
        f"az role assignment create --role {_ROLE} \\\n"
        '  --assignee-object-id "$PRINCIPAL" --assignee-principal-type ServicePrincipal \\\n'
        f'  --scope "$ACCOUNT/blobServices/default/containers/{settings.bucket}"'
    )
    lines = [
        "# PRINCIPAL: the object id of the identity (managed, workload or a service principal's) that backs up.",
        "SUBSCRIPTION=$(az account show --query id --output tsv)",
        f"ACCOUNT=$(az storage account show --name {account} --query id --output tsv)",
        f"cat > role.json <<END\n{_role(actions, '/subscriptions/$SUBSCRIPTION')}\nEND",
        "az role definition create --role-definition @role.json",
    ]
    if condition := _condition(settings, actions):
        lines.append(f"cat > condition.txt <<'END'\n{condition}\nEND")
        assignment += ' \\\n  --condition "$(cat condition.txt)" --condition-version 2.0'
    lines += [
        assignment,
        "# Or, for AZURE_STORAGE_SAS_TOKEN, with the same permissions on the whole container:",
        f"# az storage container generate-sas --account-name {account} --name {settings.bucket} --permissions {letters} \\",
        "#   --https-only --expiry 2030-01-01T00:00Z --output tsv",
    ]
    return "\n".join(lines) + "\n"
