"""Images in an S3-compatible service, for a store that several dfud share."""

from dfud_s3 import plugin

__all__ = ["plugin"]
