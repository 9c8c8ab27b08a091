"""Settings: environment variables read into frozen Structs. Providers and wrappers declare theirs with these names."""

from jobs_backup.settings.base import Setting, Settings, Variable
from jobs_backup.settings.values import Duration, Endpoint, Secret, Size
from jobs_backup.util.disclosure import redacted, shown

__all__ = ["Duration", "Endpoint", "Secret", "Setting", "Settings", "Size", "Variable", "redacted", "shown"]
