"""What was fetched becomes a folder that can be run. The GGUF importer itself is in `importers.gguf`."""

from vmm_server.models.importers.folders import Format, describe_folder, detect_format
from vmm_server.models.importers.imported import ImportedModel

__all__ = ["Format", "ImportedModel", "describe_folder", "detect_format"]
