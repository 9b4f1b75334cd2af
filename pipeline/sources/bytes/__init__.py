"""Byte ranges of files, wherever they lie: web servers, buckets, disks."""
