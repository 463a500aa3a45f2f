"""The hooks of the place s3. It can be enabled without its library, as long as no store names it."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.api import BlobPlace, Config, PluginError, Section, hookimpl
from dfud_s3.config import S3Config


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [Section("blobs.s3", S3Config, 'Images in an S3-compatible service, for a store with blobs = "s3".')]


@hookimpl
def dfud_blob_places(config: Config) -> Iterable[BlobPlace]:
    try:
        from dfud_s3.place import S3Place
    except ImportError as error:
        raise PluginError(f"the place s3 needs boto3: pip install 'dfud[s3]' ({error})") from error
    return [S3Place(config.section("blobs.s3", S3Config))]
